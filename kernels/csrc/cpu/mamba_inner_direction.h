// One direction of mamba_inner on a block of channels: the rows that its steps are at, and its weights.
#pragma once

namespace {

// The rows of a chunk of tokens in the own time of a direction; `rows` are those of an image.
VMAMBA_INLINE Rows in_time(const InnerSizes& s, i64 g, i64 start, const float* rows, i64 stride) {
  float* data = const_cast<float*>(rows);
  if (s.reversed(g)) return {data + (s.length - 1 - start) * stride, -stride};
  return {data + start * stride, stride};
}

// Asks for rows that will be used soon: they are too far apart for the processor to foresee.
inline void prefetch_rows(const Rows rows, i64 steps, i64 width) {
  for (i64 l = 0; l < steps; ++l)
    for (i64 c = 0; c < width; c += 16) __builtin_prefetch(rows.data + l * rows.stride + c, 0, 2);
}

// The weights of a block for one direction, with the channels side by side.
struct DirectionWeights {
  float* dt;    // [R][width]
  float* A2;    // [N][width]  A * log2(e)
  float* bias;  // [width]
  float* D;     // [width]

  static i64 floats(const InnerSizes& s) { return s.weights() * s.block; }
  DirectionWeights(const InnerSizes& s, float* room)
      : dt(room), A2(dt + s.rank * s.block), bias(A2 + s.states * s.block), D(bias + s.block) {}

  void load(const InnerSizes& s, const InnerInputs& in, i64 g, i64 channel, i64 width) const {
    const i64 first = g * s.channels + channel;
    stage_columns(in.dt_weight + first * s.rank, s.rank, Tile{0, 0, width, width, 0, s.rank}, dt);
    stage_columns(in.A + first * s.states, s.states, Tile{0, 0, width, width, 0, s.states}, A2);
    for (i64 i = 0; i < s.states * width; ++i) A2[i] *= kLog2e;
    for (i64 c = 0; c < width; ++c) bias[c] = in.delta_bias[first + c], D[c] = in.D[first + c];
  }
};

// Step sizes before bias and softplus, [steps][width], from the first R numbers of the rows p.
inline void project_steps(const InnerSizes& s, const float* dt, i64 width, const Rows p, i64 steps, float* delta) {
  for (i64 c = 0; c < width; c += 2 * Vec::W) {
    i64 l = 0;
    const auto several = [&](auto count, auto vectors) {
      constexpr int S = decltype(count)::value, M = decltype(vectors)::value;
      project<S, M>(p.data + l * p.stride, p.stride, s.rank, dt + c, width, delta + l * width + c);
      l += S;
    };
    const auto column = [&](auto vectors) {
      while (l + 4 <= steps) several(std::integral_constant<int, 4>{}, vectors);
      while (l < steps) several(std::integral_constant<int, 1>{}, vectors);
    };
    if (c + 2 * Vec::W <= width)
      column(std::integral_constant<int, 2>{});
    else
      column(std::integral_constant<int, 1>{});
  }
}

// 1 / (1 + exp(-z)).
VMAMBA_INLINE Vec logistic(Vec z) {
  Vec e[1] = {z * Vec::set(-kLog2e)};
  exp2<true>(e);
  return Vec::set(1.0f) / (e[0] + Vec::set(1.0f));
}

}  // namespace
