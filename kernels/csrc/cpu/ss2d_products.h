// The small matrix products of the backward of the step-size projection, on tiles that lie in cache.
#pragma once

namespace {

// V vectors of channels, Q rows of the weight: sum[r] += sum over steps of p[r] * ddelta.
template <int Q, int V>
VMAMBA_INLINE void add_weight_rows(const float* p, i64 section, const float* ddelta, i64 width, i64 steps, float* sum) {
  Vec total[Q][V];
  for (int r = 0; r < Q; ++r)
    for (int i = 0; i < V; ++i) total[r][i] = Vec::load(sum + r * width + i * Vec::W);
  for (i64 l = 0; l < steps; ++l) {
    Vec d[V];
    for (int i = 0; i < V; ++i) d[i] = Vec::load(ddelta + l * width + i * Vec::W);
    for (int r = 0; r < Q; ++r) {
      const Vec p_r = Vec::set(p[l * section + r]);
      for (int i = 0; i < V; ++i) total[r][i] = fma(p_r, d[i], total[r][i]);
    }
  }
  for (int r = 0; r < Q; ++r)
    for (int i = 0; i < V; ++i) total[r][i].store(sum + r * width + i * Vec::W);
}

// d(dt_weight) [R][width] += transpose of p [steps][R] times ddelta [steps][width].
inline void add_weight_gradient(i64 rank, const float* p, i64 section, const float* ddelta, i64 width, i64 steps,
                                float* sum) {
  const auto columns = [&](auto vectors, i64 c) {
    constexpr int V = decltype(vectors)::value;
    i64 r = 0;
    for (; r + 4 <= rank; r += 4)
      add_weight_rows<4, V>(p + r, section, ddelta + c, width, steps, sum + r * width + c);
    for (; r < rank; ++r) add_weight_rows<1, V>(p + r, section, ddelta + c, width, steps, sum + r * width + c);
  };
  i64 c = 0;
  for (; c + 2 * Vec::W <= width; c += 2 * Vec::W) columns(std::integral_constant<int, 2>{}, c);
  for (; c < width; c += Vec::W) columns(std::integral_constant<int, 1>{}, c);
}

// S steps, V vectors of the rank: to = sum over the channels of ddelta * weight, weight [channel][padded rank].
template <int S, int V>
VMAMBA_INLINE void sum_channels(const float* ddelta, i64 width, i64 count, const float* weight, i64 padded_rank,
                                float* to) {
  Vec total[S][V];
  for (int l = 0; l < S; ++l)
    for (int i = 0; i < V; ++i) total[l][i] = Vec::set(0.0f);
  for (i64 c = 0; c < count; ++c) {
    Vec w[V];
    for (int i = 0; i < V; ++i) w[i] = Vec::load(weight + c * padded_rank + i * Vec::W);
    for (int l = 0; l < S; ++l) {
      const Vec d = Vec::set(ddelta[l * width + c]);
      for (int i = 0; i < V; ++i) total[l][i] = fma(d, w[i], total[l][i]);
    }
  }
  for (int l = 0; l < S; ++l)
    for (int i = 0; i < V; ++i) total[l][i].store(to + l * padded_rank + i * Vec::W);
}

// d(step-size inputs) [steps][padded rank] = ddelta [steps][width] times weight [channel][padded rank].
inline void rank_gradient(const float* ddelta, i64 width, i64 count, i64 steps, const float* weight, i64 padded_rank,
                          float* to) {
  const auto columns = [&](auto vectors, i64 r) {
    constexpr int V = decltype(vectors)::value;
    i64 l = 0;
    for (; l + 4 <= steps; l += 4)
      sum_channels<4, V>(ddelta + l * width, width, count, weight + r, padded_rank, to + l * padded_rank + r);
    for (; l < steps; ++l)
      sum_channels<1, V>(ddelta + l * width, width, count, weight + r, padded_rank, to + l * padded_rank + r);
  };
  i64 r = 0;
  for (; r + 2 * Vec::W <= padded_rank; r += 2 * Vec::W) columns(std::integral_constant<int, 2>{}, r);
  for (; r < padded_rank; r += Vec::W) columns(std::integral_constant<int, 1>{}, r);
}

}  // namespace
