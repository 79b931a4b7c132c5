// The vector type of an instruction set, of the `Floats` that the including file names; what the sets compute alike.
#pragma once

#define VMAMBA_INLINE inline __attribute__((always_inline))

namespace {

typedef Floats Unaligned __attribute__((aligned(4), may_alias));

struct Vec {
  static constexpr int W = sizeof(Floats) / sizeof(float);
  static constexpr bool fast_divide = W < 16;
  Floats v;

  static VMAMBA_INLINE Vec set(float x) { return {x - Floats{}}; }
  static VMAMBA_INLINE Vec load(const float* p) { return {*reinterpret_cast<const Unaligned*>(p)}; }
  VMAMBA_INLINE void store(float* p) const { *reinterpret_cast<Unaligned*>(p) = v; }
};

VMAMBA_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
VMAMBA_INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
VMAMBA_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
VMAMBA_INLINE Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }

}  // namespace
