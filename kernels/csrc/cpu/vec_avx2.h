// Eight floats by AVX2 and FMA.
#pragma once

#include <immintrin.h>

typedef __m256 Floats;

#include "vec_basics.h"

namespace {

VMAMBA_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// The second operand is returned where either is NaN.
VMAMBA_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
VMAMBA_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
VMAMBA_INLINE Vec minus_abs(Vec a) { return {_mm256_or_ps(a.v, _mm256_set1_ps(-0.0f))}; }
VMAMBA_INLINE Vec select_negative(Vec x, Vec negative, Vec other) {
  return {_mm256_blendv_ps(other.v, negative.v, x.v)};
}
VMAMBA_INLINE float sum(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

// x = k + f with a whole k, |f| <= 1/2.
struct Split {
  __m256i k;
  Vec f;
};
VMAMBA_INLINE Split split(Vec x) {
  const __m256 nearest = _mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return {_mm256_cvtps_epi32(x.v), {_mm256_sub_ps(x.v, nearest)}};
}
// a * 2^k.
VMAMBA_INLINE Vec scale(Vec a, __m256i k) {
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.v), _mm256_slli_epi32(k, 23)))};
}

}  // namespace

#include "exp2_by_rounding.h"
