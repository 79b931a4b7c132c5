// 2^x on vectors that have no scaling instruction: x = k + f with a whole k, 2^f by a polynomial.
#pragma once

namespace {

// Relative error 2e-7. x below -126 gives 2^-126; x above 128 gives infinity if `Above`, else x <= 0 is assumed.
template <bool Above, int M>
VMAMBA_INLINE void exp2(Vec (&x)[M]) {
  Split s[M];
  for (int i = 0; i < M; ++i) x[i] = max(Vec::set(-126.0f), x[i]);
  if (Above)
    for (int i = 0; i < M; ++i) x[i] = min(Vec::set(128.0f), x[i]);
  for (int i = 0; i < M; ++i) s[i] = split(x[i]);
  for (int i = 0; i < M; ++i) x[i] = fma(Vec::set(1.326472707e-03f), s[i].f, Vec::set(9.671512649e-03f));
  for (int i = 0; i < M; ++i) x[i] = fma(x[i], s[i].f, Vec::set(5.550733744e-02f));
  for (int i = 0; i < M; ++i) x[i] = fma(x[i], s[i].f, Vec::set(2.402224209e-01f));
  for (int i = 0; i < M; ++i) x[i] = fma(x[i], s[i].f, Vec::set(6.931469776e-01f));
  for (int i = 0; i < M; ++i) x[i] = fma(x[i], s[i].f, Vec::set(1.0f));
  for (int i = 0; i < M; ++i) x[i] = scale(x[i], s[i].k);
}

}  // namespace
