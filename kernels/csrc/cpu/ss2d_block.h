// One block of channels of ss2d: its weights for one direction, and the projection to step sizes.
#pragma once

namespace {

// The channels of one image that are walked together, padded to whole vectors.
struct Block {
  i64 batch;
  i64 channel;
  i64 count;
  i64 width;

  Block(const Ss2dSizes& s, i64 batch, i64 index)
      : batch(batch), channel(index * s.block), count(least(s.block, s.channels - channel)), width(padded(count)) {}

  Tile image(const Ss2dSizes& s) const { return {batch, channel, count, width, 0, s.length}; }
};

inline i64 widest(const Ss2dSizes& s) { return padded(least(s.block, s.channels)); }

// The weights of a block for one direction, with the channels side by side; padding is zero.
struct Weights {
  float* dt;    // [R][width]
  float* A2;    // [N][width]  A * log2(e)
  float* bias;  // [width]

  static i64 floats(const Ss2dSizes& s) {
    return Scratch::rounded(s.rank * widest(s)) + Scratch::rounded(s.states * widest(s)) + Scratch::rounded(widest(s));
  }
  Weights(const Ss2dSizes& s, Scratch& scratch)
      : dt(scratch.take(s.rank * widest(s))), A2(scratch.take(s.states * widest(s))), bias(scratch.take(widest(s))) {}

  void load(const Ss2dSizes& s, const Ss2dInputs& in, const Block& block, i64 k) {
    const i64 first = k * s.channels + block.channel;
    stage_columns(in.dt_weight + first * s.rank, s.rank, Tile{0, 0, block.count, block.width, 0, s.rank}, dt);
    stage_columns(in.A + first * s.states, s.states, Tile{0, 0, block.count, block.width, 0, s.states}, A2);
    for (i64 i = 0; i < s.states * block.width; ++i) A2[i] *= kLog2e;
    for (i64 c = 0; c < block.count; ++c) bias[c] = in.delta_bias ? in.delta_bias[first + c] : 0.0f;
    for (i64 c = block.count; c < block.width; ++c) {
      bias[c] = 0.0f;
      for (i64 r = 0; r < s.rank; ++r) dt[r * block.width + c] = 0.0f;
      for (i64 n = 0; n < s.states; ++n) A2[n * block.width + c] = 0.0f;
    }
  }
};

// The weight of the skip for direction k: the sum of D over the directions for the first, since all of them see the
// same x, and zero for the others.
inline void skip_weight(const Ss2dSizes& s, const Ss2dInputs& in, const Block& block, i64 k, float* D) {
  for (i64 c = 0; c < block.width; ++c) D[c] = 0.0f;
  for (i64 i = 0; in.D && k == 0 && i < s.directions; ++i)
    for (i64 c = 0; c < block.count; ++c) D[c] += in.D[i * s.channels + block.channel + c];
}

// The steps of direction k of x_dbl, gathered to [steps][R + 2N].
inline void gather(const Ss2dSizes& s, const float* x_dbl, i64 batch, i64 k, const i64* at, i64 steps, float* to) {
  const i64 section = s.section(), row = s.row();
  const float* from = x_dbl + batch * s.length * row + k * section;
  for (i64 l = 0; l < steps; ++l, to += section) {
    const float* p = from + at[l] * row;
    for (i64 j = 0; j < section; ++j) to[j] = p[j];
  }
}

// S steps of M vectors: delta = sum_r p[r] * dt[r].
template <int S, int M>
VMAMBA_INLINE void project(const float* p, i64 section, i64 rank, const float* dt, i64 width, float* delta) {
  Vec sum[S][M];
  for (int l = 0; l < S; ++l)
    for (int i = 0; i < M; ++i) sum[l][i] = Vec::set(0.0f);
  for (i64 r = 0; r < rank; ++r) {
    Vec w[M];
    for (int i = 0; i < M; ++i) w[i] = Vec::load(dt + r * width + i * Vec::W);
    for (int l = 0; l < S; ++l) {
      const Vec p_l = Vec::set(p[l * section + r]);
      for (int i = 0; i < M; ++i) sum[l][i] = fma(p_l, w[i], sum[l][i]);
    }
  }
  for (int l = 0; l < S; ++l)
    for (int i = 0; i < M; ++i) sum[l][i].store(delta + l * width + i * Vec::W);
}

// Step sizes before bias and softplus, [steps][width], of gathered steps p.
inline void project_tile(const Ss2dSizes& s, const Weights& w, i64 width, const float* p, i64 steps, float* delta) {
  const i64 section = s.section();
  const auto columns = [&](auto vectors, i64 c) {
    constexpr int M = decltype(vectors)::value;
    i64 l = 0;
    for (; l + 4 <= steps; l += 4)
      project<4, M>(p + l * section, section, s.rank, w.dt + c, width, delta + l * width + c);
    for (; l < steps; ++l) project<1, M>(p + l * section, section, s.rank, w.dt + c, width, delta + l * width + c);
  };
  i64 c = 0;
  for (; c + 2 * Vec::W <= width; c += 2 * Vec::W) columns(std::integral_constant<int, 2>{}, c);
  for (; c < width; c += Vec::W) columns(std::integral_constant<int, 1>{}, c);
}

// Asks for the rows that the steps of a later tile will be at: a direction across the rows jumps too far for the
// processor to foresee.
inline void prefetch_steps(const float* rows, i64 stride, const i64* at, i64 steps, i64 floats) {
  for (i64 l = 0; l < steps; ++l)
    for (i64 c = 0; c < floats; c += 16) __builtin_prefetch(rows + at[l] * stride + c, 0, 2);
}

// The rows of an image that the steps of a tile are at: in place if they are evenly spaced, else gathered in scratch.
inline Rows read_steps(const Rows image, const i64* at, i64 steps, i64 width, float* scratch) {
  const i64 spacing = steps > 1 ? at[1] - at[0] : 1;
  i64 even = 1;
  while (even < steps && at[even] - at[even - 1] == spacing) ++even;
  if (even == steps) return {image.data + at[0] * image.stride, spacing * image.stride};
  for (i64 l = 0; l < steps; ++l) {
    const float* from = image.data + at[l] * image.stride;
    for (i64 c = 0; c < width; c += Vec::W) Vec::load(from + c).store(scratch + l * width + c);
  }
  return {scratch, width};
}

// Adds a tile [steps][width] to the rows of an image that its steps are at; the first direction writes them.
inline void add_steps(const float* tile, const i64* at, i64 steps, i64 width, bool first, const Rows image) {
  for (i64 l = 0; l < steps; ++l, tile += width) {
    float* to = image.data + at[l] * image.stride;
    if (first)
      for (i64 c = 0; c < width; c += Vec::W) Vec::load(tile + c).store(to + c);
    else
      for (i64 c = 0; c < width; c += Vec::W) (Vec::load(to + c) + Vec::load(tile + c)).store(to + c);
  }
}

// Calls walk(number of vectors, first channel) over a block, three vectors at a time: enough to hide the latency of
// the recurrence, few enough for sixteen registers.
template <class Walk>
void by_columns(i64 width, const Walk& walk) {
  i64 c = 0;
  for (; c + 3 * Vec::W <= width; c += 3 * Vec::W) walk(std::integral_constant<int, 3>{}, c);
  for (; c + 2 * Vec::W <= width; c += 2 * Vec::W) walk(std::integral_constant<int, 2>{}, c);
  for (; c < width; c += Vec::W) walk(std::integral_constant<int, 1>{}, c);
}

// Calls walk(number of states, first state), as many states at a time as there are registers for.
template <class Walk>
void by_states(i64 states, const Walk& walk) {
  i64 n = 0;
  for (; n + kStates <= states; n += kStates) walk(std::integral_constant<int, kStates>{}, n);
  for (; n + 4 <= states; n += 4) walk(std::integral_constant<int, 4>{}, n);
  for (; n < states; ++n) walk(std::integral_constant<int, 1>{}, n);
}

}  // namespace
