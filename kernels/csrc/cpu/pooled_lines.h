// The two loops of the pooled scan along memory that lies side by side: channels of a token, or tokens of a channel.
#pragma once

namespace {

using namespace vmamba;

VMAMBA_INLINE Vec load_wide(const float* p) { return Vec::load(p); }
template <class T>
VMAMBA_INLINE Vec load_wide(const T* p) {
  alignas(64) float wide[Vec::W];
#ifdef __AVX2__
  for (int i = 0; i < Vec::W; i += 8) _mm256_store_ps(wide + i, widen8(p + i));
#else
  for (int i = 0; i < Vec::W; ++i) wide[i] = widen(p[i]);
#endif
  return Vec::load(wide);
}

VMAMBA_INLINE void store_narrow(float* p, Vec x) { x.store(p); }
template <class T>
VMAMBA_INLINE void store_narrow(T* p, Vec x) {
  alignas(64) float wide[Vec::W];
  x.store(wide);
#ifdef __AVX2__
  for (int i = 0; i < Vec::W; i += 8) narrow8(p + i, _mm256_load_ps(wide + i));
#else
  for (int i = 0; i < Vec::W; ++i) p[i] = narrow<T>(wide[i]);
#endif
}

// A number for each element of a line, or one for all.
template <bool Each>
struct Numbers {
  const float* data;
  VMAMBA_INLINE Vec vec(i64 i) const { return Each ? Vec::load(data + i) : Vec::set(*data); }
  VMAMBA_INLINE float one(i64 i) const { return Each ? data[i] : *data; }
};

// y = share * sum over K groups of z + D u, for a line of n elements. `Skip`: there is a D.
template <int K, bool Skip, bool EachZ, bool EachD, class T, class O>
VMAMBA_INLINE void expand_line(i64 n, const float* const (&z)[K], const float* const (&D)[K], const T* const (&u)[K],
                               float share, O* y) {
  i64 i = 0;
  for (; i + Vec::W <= n; i += Vec::W) {
    Vec sum = Vec::set(0.0f);
    for (int k = 0; k < K; ++k) {
      sum = sum + Numbers<EachZ>{z[k]}.vec(i);
      if constexpr (Skip) sum = fma(Numbers<EachD>{D[k]}.vec(i), load_wide(u[k] + i), sum);
    }
    store_narrow(y + i, K > 1 ? sum * Vec::set(share) : sum);
  }
  for (; i < n; ++i) {
    float sum = 0.0f;
    for (int k = 0; k < K; ++k) {
      sum += Numbers<EachZ>{z[k]}.one(i);
      if constexpr (Skip) sum += Numbers<EachD>{D[k]}.one(i) * widen(u[k][i]);
    }
    y[i] = narrow<O>(K > 1 ? sum * share : sum);
  }
}

// The gradients of a line: du = share * D dy; dz and dD gain share * dy and share * dy u, each element its own or all
// of them one.
template <int K, bool Skip, bool EachZ, bool EachD, class T, class G>
VMAMBA_INLINE void gather_line(i64 n, const G* dy, const float* const (&D)[K], const T* const (&u)[K], float share,
                               T* const (&du)[K], float* dz, float* const (&dD)[K]) {
  Vec dz_all = Vec::set(0.0f), dD_all[K];
  for (int k = 0; k < K; ++k) dD_all[k] = Vec::set(0.0f);
  float dz_rest = 0.0f, dD_rest[K] = {};
  i64 i = 0;
  for (; i + Vec::W <= n; i += Vec::W) {
    const Vec g = load_wide(dy + i) * Vec::set(share);
    if constexpr (EachZ)
      (Vec::load(dz + i) + g).store(dz + i);
    else
      dz_all = dz_all + g;
    if constexpr (Skip) {
      for (int k = 0; k < K; ++k) {
        const Vec moved = g * load_wide(u[k] + i);
        store_narrow(du[k] + i, g * Numbers<EachD>{D[k]}.vec(i));
        if constexpr (EachD)
          (Vec::load(dD[k] + i) + moved).store(dD[k] + i);
        else
          dD_all[k] = dD_all[k] + moved;
      }
    }
  }
  for (; i < n; ++i) {
    const float g = widen(dy[i]) * share;
    (EachZ ? dz[i] : dz_rest) += g;
    if constexpr (Skip) {
      for (int k = 0; k < K; ++k) {
        (EachD ? dD[k][i] : dD_rest[k]) += g * widen(u[k][i]);
        du[k][i] = narrow<T>(g * Numbers<EachD>{D[k]}.one(i));
      }
    }
  }
  if constexpr (!EachZ) *dz += sum(dz_all) + dz_rest;
  if constexpr (Skip && !EachD)
    for (int k = 0; k < K; ++k) *dD[k] += sum(dD_all[k]) + dD_rest[k];
}

}  // namespace
