// The vector type of an instruction set, of the `Floats` that the including file names; what the sets compute alike.
#pragma once

#define VMAMBA_INLINE inline __attribute__((always_inline))

namespace {

struct Vec {
  static constexpr int W = sizeof(Floats) / sizeof(float);
  static constexpr bool fast_divide = W < 16;
  Floats v;

  static VMAMBA_INLINE Vec set(float x) { return {x - Floats{}}; }
  static VMAMBA_INLINE Vec load(const float* p) {
    Vec r;
    __builtin_memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  VMAMBA_INLINE void store(float* p) const { __builtin_memcpy(p, &v, sizeof v); }
};

VMAMBA_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
VMAMBA_INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
VMAMBA_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
VMAMBA_INLINE Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }

}  // namespace
