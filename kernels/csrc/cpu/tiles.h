// Tiles of [time][channel] rows in float32: read in place where the tensor already is one, else staged in scratch.
#pragma once

namespace {

using namespace vmamba;

VMAMBA_INLINE i64 least(i64 a, i64 b) { return a < b ? a : b; }

// Row l of a tile starts at data + l * stride.
struct Rows {
  float* data;
  i64 stride;
};

// Which part of a tensor a tile is: `count` channels from `channel` on, padded with zeros to `width`.
struct Tile {
  i64 batch;
  i64 channel;
  i64 count;
  i64 width;
  i64 start;
  i64 steps;
};

template <class T>
VMAMBA_INLINE T* at(const Sequence& s, i64 batch, i64 channel, i64 time) {
  return static_cast<T*>(s.data) + batch * s.batch_stride + channel * s.channel_stride + time * s.time_stride;
}

inline bool in_place(const Sequence& s, const Tile& t, i64 ratio) {
  return s.type == Type::f32 && s.channel_stride == 1 && ratio == 1 && t.count == t.width;
}

// Asks for the rows of a tile that will be used in place.
inline void prefetch(const Sequence& s, const Tile& t) {
  if (!in_place(s, t, 1)) return;
  const float* row = at<float>(s, t.batch, t.channel, t.start);
  for (i64 l = 0; l < t.steps; ++l, row += s.time_stride)
    for (i64 c = 0; c < t.count; c += 16) __builtin_prefetch(row + c, 0, 2);
}

template <class T>
void stage_rows(const T* p, i64 time_stride, const Tile& t, float* to) {
  for (i64 l = 0; l < t.steps; ++l, p += time_stride, to += t.width) {
    i64 c = 0;
#ifdef __AVX2__
    for (; c + 8 <= t.count; c += 8) _mm256_storeu_ps(to + c, widen8(p + c));
#endif
    for (; c < t.count; ++c) to[c] = widen(p[c]);
  }
}

template <class T>
void stage_columns(const T* p, i64 channel_stride, const Tile& t, float* to) {
  i64 c = 0;
#ifdef __AVX2__
  for (; c + 8 <= t.count; c += 8) {
    const T* column = p + c * channel_stride;
    i64 l = 0;
    for (; l + 8 <= t.steps; l += 8) {
      __m256 r[8];
      for (int i = 0; i < 8; ++i) r[i] = widen8(column + i * channel_stride + l);
      transpose8(r);
      for (int i = 0; i < 8; ++i) _mm256_storeu_ps(to + (l + i) * t.width + c, r[i]);
    }
    for (; l < t.steps; ++l)
      for (int i = 0; i < 8; ++i) to[l * t.width + c + i] = widen(column[i * channel_stride + l]);
  }
#endif
  for (; c < t.count; ++c)
    for (i64 l = 0; l < t.steps; ++l) to[l * t.width + c] = widen(p[c * channel_stride + l]);
}

template <class T>
Rows stage(const Sequence& s, const Tile& t, i64 ratio, float* scratch) {
  if (ratio != 1) {
    for (i64 c = 0; c < t.count; ++c)
      for (i64 l = 0; l < t.steps; ++l)
        scratch[l * t.width + c] = widen(*at<T>(s, t.batch, (t.channel + c) / ratio, t.start + l));
  } else if (s.channel_stride == 1) {
    stage_rows(at<T>(s, t.batch, t.channel, t.start), s.time_stride, t, scratch);
  } else if (s.time_stride == 1) {
    stage_columns(at<T>(s, t.batch, t.channel, t.start), s.channel_stride, t, scratch);
  } else {
    for (i64 c = 0; c < t.count; ++c)
      for (i64 l = 0; l < t.steps; ++l)
        scratch[l * t.width + c] = widen(*at<T>(s, t.batch, t.channel + c, t.start + l));
  }
  for (i64 l = 0; l < t.steps; ++l)
    for (i64 c = t.count; c < t.width; ++c) scratch[l * t.width + c] = 0.0f;
  return {scratch, t.width};
}

// The rows of a tile of s, `ratio` channels of the tile sharing one channel of s.
inline Rows read(const Sequence& s, const Tile& t, i64 ratio, float* scratch) {
  if (in_place(s, t, ratio)) return {at<float>(s, t.batch, t.channel, t.start), s.time_stride};
  if (s.type == Type::f32) return stage<float>(s, t, ratio, scratch);
  if (s.type == Type::bf16) return stage<BFloat16>(s, t, ratio, scratch);
  return stage<Float16>(s, t, ratio, scratch);
}

// Where to write the rows of a tile of s; `flush` must follow.
inline Rows write(const Sequence& s, const Tile& t, float* scratch) {
  if (in_place(s, t, 1)) return {at<float>(s, t.batch, t.channel, t.start), s.time_stride};
  return {scratch, t.width};
}

template <class T>
void unstage(const Sequence& s, const Tile& t, const float* from) {
  if (s.channel_stride == 1) {
    T* p = at<T>(s, t.batch, t.channel, t.start);
    for (i64 l = 0; l < t.steps; ++l, p += s.time_stride, from += t.width) {
      i64 c = 0;
#ifdef __AVX2__
      for (; c + 8 <= t.count; c += 8) narrow8(p + c, _mm256_loadu_ps(from + c));
#endif
      for (; c < t.count; ++c) p[c] = narrow<T>(from[c]);
    }
    return;
  }
  T* p = at<T>(s, t.batch, t.channel, t.start);
  i64 c = 0;
#ifdef __AVX2__
  for (; s.time_stride == 1 && c + 8 <= t.count; c += 8) {
    T* column = p + c * s.channel_stride;
    i64 l = 0;
    for (; l + 8 <= t.steps; l += 8) {
      __m256 r[8];
      for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + (l + i) * t.width + c);
      transpose8(r);
      for (int i = 0; i < 8; ++i) narrow8(column + i * s.channel_stride + l, r[i]);
    }
    for (; l < t.steps; ++l)
      for (int i = 0; i < 8; ++i) column[i * s.channel_stride + l] = narrow<T>(from[l * t.width + c + i]);
  }
#endif
  for (; c < t.count; ++c)
    for (i64 l = 0; l < t.steps; ++l)
      p[c * s.channel_stride + l * s.time_stride] = narrow<T>(from[l * t.width + c]);
}

inline void flush(const Sequence& s, const Tile& t, Rows rows) {
  if (in_place(s, t, 1)) return;
  if (s.type == Type::f32) return unstage<float>(s, t, rows.data);
  if (s.type == Type::bf16) return unstage<BFloat16>(s, t, rows.data);
  unstage<Float16>(s, t, rows.data);
}

template <class T>
void pack(const Projection& p, i64 batch, i64 group, i64 start, i64 steps, i64 states, float* to) {
  const T* from = static_cast<const T*>(p.data);
  from += batch * p.batch_stride + group * p.group_stride + start * p.time_stride;
  if (p.state_stride == 1) {
    for (i64 l = 0; l < steps; ++l)
      for (i64 n = 0; n < states; ++n) to[l * states + n] = widen(from[l * p.time_stride + n]);
  } else {
    for (i64 n = 0; n < states; ++n)
      for (i64 l = 0; l < steps; ++l)
        to[l * states + n] = widen(from[n * p.state_stride + l * p.time_stride]);
  }
}

// The steps of B or C as float32 [time][state], in `to`.
inline void pack(const Projection& p, i64 batch, i64 group, i64 start, i64 steps, i64 states, float* to) {
  if (p.type == Type::f32) return pack<float>(p, batch, group, start, steps, states, to);
  if (p.type == Type::bf16) return pack<BFloat16>(p, batch, group, start, steps, states, to);
  pack<Float16>(p, batch, group, start, steps, states, to);
}

// One allocation, cut into 64-byte aligned arrays of floats.
class Scratch {
 public:
  explicit Scratch(i64 floats)
      : base_(static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t(64)))) {}
  ~Scratch() { ::operator delete(base_, std::align_val_t(64)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* take(i64 floats) {
    float* part = base_ + used_;
    used_ += rounded(floats);
    return part;
  }
  static i64 rounded(i64 floats) { return (floats + 15) / 16 * 16; }

 private:
  float* base_;
  i64 used_ = 0;
};

// The channels of one task and what is the same for all of its tiles, padded to whole vectors.
struct Task {
  i64 batch;
  i64 group;
  i64 block;
  i64 channel;  // first channel among all
  i64 count;
  i64 width;

  Task(const ScanSizes& s, i64 index) {
    block = index % s.blocks();
    group = index / s.blocks() % s.groups;
    batch = index / s.blocks() / s.groups;
    channel = group * s.group_channels + block * s.block;
    count = least(s.block, s.group_channels - block * s.block);
    width = (count + Vec::W - 1) / Vec::W * Vec::W;
  }

  Tile tile(i64 start, i64 steps) const { return {batch, channel, count, width, start, steps}; }
};

inline i64 padded(i64 channels) { return (channels + Vec::W - 1) / Vec::W * Vec::W; }

// A * log2(e) as [state][channel], bias and D as [channel].
inline void load_weights(const ScanSizes& s, const ScanInputs& in, const Task& t, float* A2, float* bias, float* D) {
  for (i64 c = 0; c < t.width; ++c) {
    const bool real = c < t.count;
    const i64 channel = t.channel + c;
    for (i64 n = 0; n < s.states; ++n) A2[n * t.width + c] = real ? in.A[channel * s.states + n] * kLog2e : 0.0f;
    bias[c] = real && in.delta_bias ? in.delta_bias[channel / s.delta_ratio] : 0.0f;
    D[c] = real && in.D ? in.D[channel] : 0.0f;
  }
}

// Whether no decay exp(dt * A) with dt >= 0 can exceed one, so that exponents need no upper bound.
inline bool all_shrink(const float* A, i64 count) {
  bool shrink = true;
  for (i64 i = 0; shrink && i < count; ++i) shrink = A[i] <= 0.0f;
  return shrink;
}

// How many tasks go through time together. Where channels lie side by side, a tile of all of them is whole pages of
// memory and of one task alone it is a stripe of each; the limit is what they keep between tiles, in floats.
inline i64 tasks_together(const ScanInputs& in, i64 floats) {
  if (in.u.channel_stride != 1) return 1;
  const i64 fit = 65536 / floats;
  return fit < 1 ? 1 : least(fit, 64);
}

// Calls run(from, to) for pieces of [begin, end) of at most `together` tasks of one image.
template <class Run>
void side_by_side(const ScanSizes& s, i64 together, i64 begin, i64 end, const Run& run) {
  const i64 per_image = s.groups * s.blocks();
  while (begin < end) {
    const i64 image_end = (begin / per_image + 1) * per_image;
    const i64 stop = least(least(begin + together, image_end), end);
    run(begin, stop);
    begin = stop;
  }
}

}  // namespace
