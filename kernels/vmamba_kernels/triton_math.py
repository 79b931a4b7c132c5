"""Functions of numbers that Triton kernels of several operators take; imported with the kernels, not before."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), to within 3e-7 of itself even where it is tiny; x itself from 20 on."""
    e = tl.exp2(tl.abs(x) * -LOG2E)
    p = e * 0.0051261018961668015 - 0.029074065387248993
    p = e * p + 0.0775160863995552
    p = e * p - 0.13602247834205627
    p = e * p + 0.19076880812644958
    p = e * p - 0.2483539879322052
    p = e * p + 0.3331812024116516
    p = e * p - 0.4999944567680359
    p = e * p + 0.9999999403953552
    return tl.maximum(x, 0.0) + e * p


@triton.jit
def softplus_slope(x):
    """The derivative of softplus."""
    e = tl.exp2(tl.abs(x) * -LOG2E)
    return tl.where(x >= 0.0, 1.0, e) / (1.0 + e)
