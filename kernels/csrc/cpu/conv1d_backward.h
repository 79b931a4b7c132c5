// The causal convolution, backward. With q the gradient of the sum over the taps, in the own time of a group:
// dx_s = sum_j weight[j] q_{s + (W-1-j)}, dweight[j] = sum_s q_s x_{s - (W-1-j)}, dbias = sum_s q_s.
#pragma once

namespace {

// q of one row, from what its taps read and the gradient of its output.
template <int kTaps, bool kSilu>
void gradient_row(const float* const* rows, const float* w, i64 width, i64 taps, const float* dout, float* q) {
  over_channels(width, [&](i64 c, auto vectors) __attribute__((always_inline)) {
    constexpr int kVectors = decltype(vectors)::value;
    const Vec one = Vec::set(1.0f);
    Vec p[kVectors], e[kVectors], d[kVectors];
    for (int m = 0; m < kVectors; ++m) d[m] = Vec::load(dout + c + m * Vec::W);
    if constexpr (kSilu) {
      sum_taps<kTaps>(rows, w, width, taps, c, p);
      negative_exponential(p, e);
      for (int m = 0; m < kVectors; ++m) {
        const Vec s = one / (e[m] + one);
        d[m] = d[m] * s * fma(p[m], one - s, one);
      }
    }
    for (int m = 0; m < kVectors; ++m) d[m].store(q + c + m * Vec::W);
  });
}

// One group's part of a tile, in its own time: q [steps + W - 1][width] and x_rows from W - 1 steps before the tile on.
// Writes dx (adds to it if `add`) and adds to sums [W+1][width].
template <int kTaps>
void collect(const float* q, const float* const* x_rows, const float* w, i64 width, i64 taps, i64 steps, bool add,
             float* const* dx_rows, float* sums) {
  constexpr i64 kRoom = kTaps ? kTaps : kMostTaps;
  const i64 count = kTaps ? kTaps : taps;
  for (i64 c = 0; c < width; c += Vec::W) {
    Vec filter[kRoom], sum[kRoom], bias_sum = Vec::set(0.0f);
    for (i64 j = 0; j < count; ++j) filter[j] = Vec::load(w + j * width + c), sum[j] = Vec::set(0.0f);
    for (i64 s = 0; s < steps; ++s) {
      const float* now = q + s * width + c;
      const Vec q_now = Vec::load(now);
      bias_sum = bias_sum + q_now;
      Vec dx = add ? Vec::load(dx_rows[s] + c) : Vec::set(0.0f);
      for (i64 j = 0; j < count; ++j) {
        dx = fma(filter[j], Vec::load(now + (count - 1 - j) * width), dx);
        sum[j] = fma(q_now, Vec::load(x_rows[s + j] + c), sum[j]);
      }
      dx.store(dx_rows[s] + c);
    }
    for (i64 j = 0; j < count; ++j) (Vec::load(sums + j * width + c) + sum[j]).store(sums + j * width + c);
    (Vec::load(sums + count * width + c) + bias_sum).store(sums + count * width + c);
  }
}

template <int kTaps, bool kSilu>
struct ConvBackward {
  const ConvBackwardArgs& a;
  const ConvSizes& z = a.sizes;
  const i64 halo = z.taps - 1;
  const i64 widest = padded(least(z.block, z.channels));
  const i64 weights = (z.taps + 1) * widest;
  const i64 rows = z.tile + 2 * halo;
  Scratch scratch{2 * Scratch::rounded(z.groups * weights) + 4 * Scratch::rounded(rows * widest) +
                  Scratch::rounded(widest)};
  float* w = scratch.take(z.groups * weights);
  float* sums = scratch.take(z.groups * weights);
  float* x_room = scratch.take(rows * widest);
  float* dout_room = scratch.take(rows * widest);
  float* dx_room = scratch.take(rows * widest);
  float* q = scratch.take(rows * widest);
  float* zeros = scratch.take(widest);

  void tile(const Tile& t) {
    const float* x_rows[kConvTile + 2 * kMostTaps];
    float* dx_rows[kConvTile];
    RowsAround x{};
    Sequence dx = a.dx;
    Rows to{};
    for (i64 g = 0; g < z.groups; ++g) {
      if (g == 0 || !z.shared) {
        x = around(z.shared ? a.in.x : of_group(a.in.x, g, z.channels), t, halo, halo, z.length, x_room, zeros);
        dx = z.shared ? a.dx : of_group(a.dx, g, z.channels);
        to = write(dx, t, dx_room);
      }
      const bool reversed = z.reversed(g);
      const i64 first = reversed ? t.start + t.steps - 1 : t.start, step = reversed ? -1 : 1;
      const RowsAround dout = around(output_of(z, a.dout, g), t, reversed ? halo : 0, reversed ? 0 : halo, z.length,
                                     dout_room, zeros);
      for (i64 k = 0; k < t.steps + 2 * halo; ++k) x_rows[k] = x.at(first + step * (k - halo));
      for (i64 k = 0; k < t.steps + halo; ++k) {
        const i64 now = first + step * k;
        float* row = q + k * t.width;
        if (0 <= now && now < z.length)
          gradient_row<kTaps, kSilu>(x_rows + k, w + g * weights, t.width, z.taps, dout.at(now), row);
        else
          for (i64 c = 0; c < t.width; ++c) row[c] = 0.0f;
      }
      for (i64 s = 0; s < t.steps; ++s) dx_rows[s] = to.data + (first + step * s - t.start) * to.stride;
      collect<kTaps>(q, x_rows, w + g * weights, t.width, z.taps, t.steps, z.shared && g > 0, dx_rows,
                     sums + g * weights);
      if (g + 1 == z.groups || !z.shared) flush(dx, t, to);
    }
  }

  void task(i64 index) {
    const i64 channel = index / z.batch_groups * z.block, group = index % z.batch_groups;
    const i64 count = least(z.block, z.channels - channel), width = padded(count);
    const Tile all{0, channel, count, width, 0, z.length};
    for (i64 g = 0; g < z.groups; ++g) load_taps(z, a.in, g, all, w + g * weights);
    for (i64 i = 0; i < z.groups * weights; ++i) sums[i] = 0.0f;
    for (i64 batch = z.batch * group / z.batch_groups; batch < z.batch * (group + 1) / z.batch_groups; ++batch)
      for (i64 start = 0; start < z.length; start += z.tile)
        tile({batch, channel, count, width, start, least(z.tile, z.length - start)});
    for (i64 g = 0; g < z.groups; ++g)
      for (i64 j = 0; j <= z.taps; ++j)
        for (i64 c = 0; c < count; ++c)
          a.partial[((group * z.groups + g) * (z.taps + 1) + j) * z.channels + channel + c] =
              sums[g * weights + j * width + c];
  }

  void run(i64 begin, i64 end) {
    for (i64 c = 0; c < widest; ++c) zeros[c] = 0.0f;
    for (i64 index = begin; index < end; ++index) task(index);
  }
};

inline void conv1d_backward(const ConvBackwardArgs& a, i64 begin, i64 end) {
  if (a.sizes.taps == 4)
    return a.sizes.silu ? ConvBackward<4, true>{a}.run(begin, end) : ConvBackward<4, false>{a}.run(begin, end);
  a.sizes.silu ? ConvBackward<0, true>{a}.run(begin, end) : ConvBackward<0, false>{a}.run(begin, end);
}

}  // namespace
