// Four floats, by the vector extension of GCC and Clang: any processor.
#pragma once

#include <cstdint>
#include <cstring>

typedef float Floats __attribute__((vector_size(16)));
typedef std::int32_t Ints __attribute__((vector_size(16)));

#include "vec_basics.h"

namespace {

VMAMBA_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
// The second operand is returned where either is NaN.
VMAMBA_INLINE Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
VMAMBA_INLINE Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
VMAMBA_INLINE Vec minus_abs(Vec a) { return {(Floats)((Ints)a.v | INT32_MIN)}; }
VMAMBA_INLINE Vec select_negative(Vec x, Vec negative, Vec other) {
  return {(Ints)x.v < 0 ? negative.v : other.v};
}
VMAMBA_INLINE float sum(Vec a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }

// x = k + f with a whole k, |f| <= 1/2; |x| < 2^22. Adding 1.5 * 2^23 rounds, and leaves k in the low bits.
struct Split {
  Ints k;
  Vec f;
};
VMAMBA_INLINE Split split(Vec x) {
  const Vec rounded = x + Vec::set(12582912.0f);
  return {(Ints)rounded.v, x - (rounded - Vec::set(12582912.0f))};
}
// a * 2^k.
VMAMBA_INLINE Vec scale(Vec a, Ints k) { return {(Floats)((Ints)a.v + (k << 23))}; }

}  // namespace

#include "exp2_by_rounding.h"
