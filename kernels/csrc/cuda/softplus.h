// softplus and its derivative from one exponential, accurate to a few units in the last place for tiny results too.
#pragma once

#include "words.h"

namespace vmamba::cuda {

constexpr float kLog2e = 1.44269504f;

// e^-|x|: what both functions below are made of.
__device__ __forceinline__ float softplus_exponential(float x) { return exp2_fast(-kLog2e * fabsf(x)); }

// log(1 + e^x) = max(x, 0) + log1p(e), the last by a polynomial on [0, 1] (relative error 2e-7).
// Above 20 it is x itself: e is then below half a unit in the last place of x.
__device__ __forceinline__ float softplus(float x, float e) {
  float p = 0.00536474027f;
  p = fmaf(p, e, -0.0300654564f);
  p = fmaf(p, e, 0.0792039931f);
  p = fmaf(p, e, -0.137537569f);
  p = fmaf(p, e, 0.191536337f);
  p = fmaf(p, e, -0.24857159f);
  p = fmaf(p, e, 0.33321321f);
  p = fmaf(p, e, -0.499996483f);
  p = fmaf(p, e, 1.0f);
  return fmaf(p, e, fmaxf(x, 0.0f));
}

// 1 / (1 + e^-x)
__device__ __forceinline__ float softplus_derivative(float x, float e) {
  return (x >= 0.0f ? 1.0f : e) * reciprocal(1.0f + e);
}

}  // namespace vmamba::cuda
