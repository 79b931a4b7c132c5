// softplus(x) = max(x, 0) + log(1 + e), e = exp(-|x|), and its derivative, on M vectors in step.
#pragma once

namespace {

constexpr float kLog2e = 1.442695041f;

// e = exp(-|x|).
template <int M>
VMAMBA_INLINE void exp_minus_abs(const Vec (&x)[M], Vec (&e)[M]) {
  for (int i = 0; i < M; ++i) e[i] = minus_abs(x[i]) * Vec::set(kLog2e);
  exp2<false>(e);
}

// x becomes softplus(x), given e = exp(-|x|); above 20 that is x itself in float32. Relative error 3e-7, also where x
// is very negative and log(1 + e) would have lost its digits.
template <int M>
VMAMBA_INLINE void softplus_from(Vec (&x)[M], const Vec (&e)[M]) {
  Vec p[M];
  if constexpr (Vec::fast_divide) {
    // log(1 + e) = 2 atanh(s), s = e / (2 + e) <= 1/3: one division for five multiplications less.
    Vec s[M], w[M];
    for (int i = 0; i < M; ++i) s[i] = e[i] / (e[i] + Vec::set(2.0f));
    for (int i = 0; i < M; ++i) w[i] = s[i] * s[i];
    for (int i = 0; i < M; ++i) p[i] = fma(Vec::set(3.422605014e-01f), w[i], Vec::set(3.958946135e-01f));
    for (int i = 0; i < M; ++i) p[i] = fma(p[i], w[i], Vec::set(6.667600288e-01f));
    for (int i = 0; i < M; ++i) p[i] = fma(p[i], w[i], Vec::set(1.999999671e+00f));
    for (int i = 0; i < M; ++i) x[i] = fma(s[i], p[i], max(Vec::set(0.0f), x[i]));
  } else {
    for (int i = 0; i < M; ++i) p[i] = fma(Vec::set(5.232691417e-03f), e[i], Vec::set(-2.950522737e-02f));
    for (int i = 0; i < M; ++i) p[i] = fma(p[i], e[i], Vec::set(7.822593330e-02f));
    for (int i = 0; i < M; ++i) p[i] = fma(p[i], e[i], Vec::set(-1.366324422e-01f));
    for (int i = 0; i < M; ++i) p[i] = fma(p[i], e[i], Vec::set(1.910600602e-01f));
    for (int i = 0; i < M; ++i) p[i] = fma(p[i], e[i], Vec::set(-2.484298202e-01f));
    for (int i = 0; i < M; ++i) p[i] = fma(p[i], e[i], Vec::set(3.331909678e-01f));
    for (int i = 0; i < M; ++i) p[i] = fma(p[i], e[i], Vec::set(-4.999949314e-01f));
    for (int i = 0; i < M; ++i) p[i] = fma(p[i], e[i], Vec::set(9.999999699e-01f));
    for (int i = 0; i < M; ++i) x[i] = fma(e[i], p[i], max(Vec::set(0.0f), x[i]));
  }
}

template <int M>
VMAMBA_INLINE void softplus(Vec (&x)[M], Vec (&e)[M]) {
  exp_minus_abs(x, e);
  softplus_from(x, e);
}

// The derivative of softplus at x, from e = exp(-|x|).
VMAMBA_INLINE Vec sigmoid(Vec x, Vec e) {
  const Vec r = Vec::set(1.0f) / (Vec::set(1.0f) + e);
  return select_negative(x, e * r, r);
}

}  // namespace
