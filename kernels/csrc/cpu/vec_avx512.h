// Sixteen floats by AVX-512 F, DQ.
#pragma once

#include <immintrin.h>

typedef __m512 Floats;

#include "vec_basics.h"

namespace {

VMAMBA_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// The second operand is returned where either is NaN.
VMAMBA_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
VMAMBA_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
VMAMBA_INLINE Vec minus_abs(Vec a) { return {_mm512_or_ps(a.v, _mm512_set1_ps(-0.0f))}; }
VMAMBA_INLINE Vec select_negative(Vec x, Vec negative, Vec other) {
  return {_mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x.v)), other.v, negative.v)};
}
VMAMBA_INLINE float sum(Vec a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

// 2^x, relative error 9e-8; the instructions keep NaN, underflow and overflow right by themselves.
// `Above` (x may be positive) makes no difference here.
template <bool Above, int M>
VMAMBA_INLINE void exp2(Vec (&x)[M]) {
  Vec f[M], p[M];
  for (int i = 0; i < M; ++i) f[i].v = _mm512_reduce_ps(x[i].v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  for (int i = 0; i < M; ++i) p[i] = fma(Vec::set(1.867130087e-03f), f[i], Vec::set(9.017030275e-03f));
  for (int i = 0; i < M; ++i) p[i] = fma(p[i], f[i], Vec::set(5.579991315e-02f));
  for (int i = 0; i < M; ++i) p[i] = fma(p[i], f[i], Vec::set(2.401644501e-01f));
  for (int i = 0; i < M; ++i) p[i] = fma(p[i], f[i], Vec::set(6.931513118e-01f));
  for (int i = 0; i < M; ++i) p[i] = fma(p[i], f[i], Vec::set(1.0f));
  for (int i = 0; i < M; ++i) x[i].v = _mm512_scalef_ps(p[i].v, x[i].v);
}

}  // namespace
