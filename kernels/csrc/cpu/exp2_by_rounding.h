// 2^x on vectors that have no scaling instruction: x = k + f with k rounded by an addition, 2^f by a polynomial.
#pragma once

namespace {

// Relative error 1e-7. x below -126 gives 2^-126; x above 128 gives infinity if `Above`, else x <= 0 is assumed.
template <bool Above, int M>
VMAMBA_INLINE void exp2(Vec (&x)[M]) {
  const Vec round = Vec::set(12582912.0f);  // 1.5 * 2^23
  Vec k[M], f[M], p[M];
  for (int i = 0; i < M; ++i) x[i] = max(Vec::set(-126.0f), x[i]);
  if (Above)
    for (int i = 0; i < M; ++i) x[i] = min(Vec::set(128.0f), x[i]);
  for (int i = 0; i < M; ++i) k[i] = x[i] + round;
  for (int i = 0; i < M; ++i) f[i] = x[i] - (k[i] - round);
  for (int i = 0; i < M; ++i) {
    // In pairs, not one after the other: the wait for each other is what these vectors spend their time on.
    const Vec f2 = f[i] * f[i];
    const Vec p45 = fma(Vec::set(1.326472707e-03f), f[i], Vec::set(9.671512649e-03f));
    const Vec p23 = fma(Vec::set(5.550733744e-02f), f[i], Vec::set(2.402224209e-01f));
    const Vec p01 = fma(Vec::set(6.931469776e-01f), f[i], Vec::set(1.0f));
    p[i] = fma(fma(p45, f2, p23), f2, p01);
  }
  for (int i = 0; i < M; ++i) x[i] = scale_by_rounded(p[i], k[i]);
}

}  // namespace
