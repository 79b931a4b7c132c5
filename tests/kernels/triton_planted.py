"""A Triton kernel that is good or bad by its arguments: what the gates of test_triton_aot.py must tell apart."""

import triton
import triton.language as tl


@triton.jit
def sorted_sums(x, y, stride, SIZE: tl.constexpr):
    """y = x - its running sum from the end: with a stride of 1 by wide copies; a large SIZE needs many registers."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    value = tl.load(x + at * stride).to(tl.float32)
    tl.store(y + at * stride, value - tl.cumsum(value, reverse=True))
