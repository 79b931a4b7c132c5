// gelu(x + bias) = v Phi(v), v = x + bias, Phi(v) = (1 + erf(v / sqrt 2)) / 2, and its derivative Phi(v) + v phi(v).
#pragma once

namespace {

using namespace vmamba;

// erf(z) by a ratio of polynomials in z^2, absolute error 4e-7; beyond 3.92 it is one in float32.
VMAMBA_INLINE Vec erf(Vec z) {
  z = min(Vec::set(3.9192f), max(Vec::set(-3.9192f), z));
  const Vec w = z * z;
  Vec p = fma(Vec::set(2.050902352e-06f), w, Vec::set(2.848760544e-04f));
  p = fma(p, w, Vec::set(3.763794144e-03f));
  p = fma(p, w, Vec::set(5.274321513e-02f));
  p = fma(p, w, Vec::set(1.903594279e-01f));
  p = fma(p, w, Vec::set(1.128379146e+00f));
  Vec q = fma(Vec::set(3.809979989e-05f), w, Vec::set(1.162157359e-03f));
  q = fma(q, w, Vec::set(1.496553914e-02f));
  q = fma(q, w, Vec::set(1.140903168e-01f));
  q = fma(q, w, Vec::set(5.020343959e-01f));
  q = fma(q, w, Vec::set(1.0f));
  return z * p / q;
}

VMAMBA_INLINE Vec normal_cdf(Vec v) {
  return fma(Vec::set(0.5f), erf(v * Vec::set(0.7071067812f)), Vec::set(0.5f));
}

// Below -5.55 the cdf is less than its rounding error, which a larger factor must not blow up.
VMAMBA_INLINE Vec gelu(Vec v, Vec cdf) { return max(Vec::set(-5.55f), v) * cdf; }

VMAMBA_INLINE Vec gelu_derivative(Vec v, Vec cdf) {
  Vec density[1] = {v * v * Vec::set(-0.7213475204f)};  // -v^2 / 2 * log2(e)
  exp2<false>(density);
  return fma(v * Vec::set(0.3989422804f), density[0], cdf);
}

void bias_gelu_forward(const BiasGeluArgs& a, i64 begin, i64 end) {
  const i64 last = end * a.rows_per_task < a.rows ? end * a.rows_per_task : a.rows;
  for (i64 row = begin * a.rows_per_task; row < last; ++row) {
    const float* x = a.x + row * a.channels;
    float* y = a.to + row * a.channels;
    by_vectors(a.channels, [&](i64 c, auto lanes) {
      const Vec v = lanes.load(x + c) + lanes.load(a.bias + c);
      lanes.store(gelu(v, normal_cdf(v)), y + c);
    });
  }
}

void bias_gelu_backward(const BiasGeluArgs& a, i64 begin, i64 end) {
  for (i64 task = begin; task < end; ++task) {
    float* dbias = a.dbias + task * a.channels;
    for (i64 c = 0; c < a.channels; ++c) dbias[c] = 0.0f;
    const i64 first = task * a.rows_per_task;
    const i64 last = first + a.rows_per_task < a.rows ? first + a.rows_per_task : a.rows;
    for (i64 row = first; row < last; ++row) {
      const float *x = a.x + row * a.channels, *dy = a.dy + row * a.channels;
      float *dx = a.to + row * a.channels, *y = a.y ? a.y + row * a.channels : nullptr;
      by_vectors(a.channels, [&](i64 c, auto lanes) {
        const Vec v = lanes.load(x + c) + lanes.load(a.bias + c);
        const Vec cdf = normal_cdf(v), d = lanes.load(dy + c) * gelu_derivative(v, cdf);
        lanes.store(d, dx + c);
        if (y) lanes.store(gelu(v, cdf), y + c);
        lanes.store(lanes.load(dbias + c) + d, dbias + c);
      });
    }
  }
}

}  // namespace
