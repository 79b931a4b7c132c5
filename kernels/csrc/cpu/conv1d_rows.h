// Rows [channel] of a sequence, one a time step, as the groups of a causal convolution see them: every group is causal
// in its own time, which is the mirror image of x's if the group is reversed.
#pragma once

namespace {

// Rows by the time of x; those outside the sequence are zeros.
struct RowsAround {
  const float* data;
  i64 stride;
  i64 first, last;  // the rows that are there
  const float* zeros;

  const float* at(i64 t) const { return t < first || t >= last ? zeros : data + (t - first) * stride; }
};

inline RowsAround around(const Sequence& s, Tile t, i64 before, i64 after, i64 length, float* scratch,
                         const float* zeros) {
  const i64 stop = least(length, t.start + t.steps + after);
  t.start = t.start > before ? t.start - before : 0;
  t.steps = stop - t.start;
  const Rows rows = read(s, t, 1, scratch);
  return {rows.data, rows.stride, t.start, stop, zeros};
}

inline i64 elements_offset(Type type, i64 elements) { return elements * (type == Type::f32 ? 4 : 2); }

// The channels of one group.
inline Sequence of_group(Sequence s, i64 group, i64 channels) {
  s.data = static_cast<char*>(s.data) + elements_offset(s.type, group * channels * s.channel_stride);
  return s;
}

// The outputs of a group by the time of x, though they may lie in the group's own.
inline Sequence output_of(const ConvSizes& z, const Sequence& all, i64 group) {
  Sequence s = of_group(all, group, z.channels);
  if (!z.flip || !z.reversed(group)) return s;
  s.data = static_cast<char*>(s.data) + elements_offset(s.type, (z.length - 1) * s.time_stride);
  s.time_stride = -s.time_stride;
  return s;
}

// weight and bias of channels of a group as [W+1][width], the bias last.
inline void load_taps(const ConvSizes& z, const ConvInputs& in, i64 group, const Tile& t, float* to) {
  for (i64 c = 0; c < t.width; ++c) {
    const bool real = c < t.count;
    const i64 filter = group * z.channels + t.channel + c;
    for (i64 j = 0; j < z.taps; ++j) to[j * t.width + c] = real ? in.weight[filter * z.taps + j] : 0.0f;
    to[z.taps * t.width + c] = real && in.bias ? in.bias[filter] : 0.0f;
  }
}

// bias + sum over the taps of kVectors vectors of channels: rows[j] is what tap j reads, w as `load_taps` leaves it.
template <int kTaps, int kVectors>
VMAMBA_INLINE void sum_taps(const float* const* rows, const float* w, i64 width, i64 taps, i64 c, Vec (&p)[kVectors]) {
  const i64 count = kTaps ? kTaps : taps;
  for (int m = 0; m < kVectors; ++m) p[m] = Vec::load(w + count * width + c + m * Vec::W);
  for (i64 j = 0; j < count; ++j)
    for (int m = 0; m < kVectors; ++m)
      p[m] = fma(Vec::load(w + j * width + c + m * Vec::W), Vec::load(rows[j] + c + m * Vec::W), p[m]);
}

// exp(-p).
template <int kVectors>
VMAMBA_INLINE void negative_exponential(const Vec (&p)[kVectors], Vec (&e)[kVectors]) {
  for (int m = 0; m < kVectors; ++m) e[m] = p[m] * Vec::set(-kLog2e);
  exp2<true>(e);
}

// Calls step(c, constant number of vectors) for all vectors of a row.
template <class Step>
VMAMBA_INLINE void over_channels(i64 width, const Step& step) {
  i64 c = 0;
  for (; c + 4 * Vec::W <= width; c += 4 * Vec::W) step(c, std::integral_constant<int, 4>{});
  for (; c < width; c += Vec::W) step(c, std::integral_constant<int, 1>{});
}

}  // namespace
