// softplus(x) = max(x, 0) + log(1 + e), e = exp(-|x|), and its derivative.
// Relative error 5e-7, also where x is very negative and log(1 + e) would have lost its digits.
#pragma once

namespace {

constexpr float kLog2e = 1.442695041f;

// max(x, 0) + log(1 + e) by log(1 + e) = 2 atanh(s), s = e / (2 + e) <= 1/3.
VMAMBA_INLINE Vec softplus_by_atanh(Vec x, Vec s) {
  const Vec w = s * s;
  Vec p = fma(Vec::set(3.422605014e-01f), w, Vec::set(3.958946135e-01f));
  p = fma(p, w, Vec::set(6.667600288e-01f));
  p = fma(p, w, Vec::set(1.999999671e+00f));
  return fma(s, p, max(Vec::set(0.0f), x));
}

// The same by a polynomial in e: no division.
VMAMBA_INLINE Vec softplus_by_polynomial(Vec x, Vec e) {
  Vec p = fma(Vec::set(5.232691417e-03f), e, Vec::set(-2.950522737e-02f));
  p = fma(p, e, Vec::set(7.822593330e-02f));
  p = fma(p, e, Vec::set(-1.366324422e-01f));
  p = fma(p, e, Vec::set(1.910600602e-01f));
  p = fma(p, e, Vec::set(-2.484298202e-01f));
  p = fma(p, e, Vec::set(3.331909678e-01f));
  p = fma(p, e, Vec::set(-4.999949314e-01f));
  p = fma(p, e, Vec::set(9.999999699e-01f));
  return fma(e, p, max(Vec::set(0.0f), x));
}

// softplus(x), given e = exp(-|x|); above 20 that is x itself in float32.
VMAMBA_INLINE Vec softplus(Vec x, Vec e) {
  if constexpr (Vec::fast_divide) return softplus_by_atanh(x, e / (e + Vec::set(2.0f)));
  return softplus_by_polynomial(x, e);
}

// The derivative of softplus at x, given e = exp(-|x|).
VMAMBA_INLINE Vec sigmoid(Vec x, Vec e) {
  const Vec above = Vec::set(1.0f) / (Vec::set(1.0f) + e);
  return select_negative(x, e * above, above);
}

}  // namespace
