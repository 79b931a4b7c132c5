"""Ceilings for what nvcc makes of kernels/csrc/cuda/ss2d.cu, which holds the kernels for bfloat16."""

from __future__ import annotations

# Registers by kernel and states taken at once. With 256 threads to a block two blocks share a multiprocessor at 128.
CEILINGS: dict[tuple[str, int], int] = {
    ("ss2d_forward", 1): 128,
    ("ss2d_forward", 2): 255,
    ("ss2d_backward", 1): 255,
    ("ss2d_backward", 2): 255,
    ("ss2d_reduce_rows", 0): 48,
    ("ss2d_reduce_weights", 0): 48,
}
INSTANCES = 8
ATOMICS = ("ss2d_backward",)
# Positions are read four at a time.
LOAD_BITS: dict[str, int] = {"ss2d_forward": 128, "ss2d_backward": 128}
# A turn of the loop over directions at 98 steps to a thread (L = 784 in 8 slots), of that over tiles, and at 16 states
# of that over pairs of states. Every way to merge and to write is laid out beside the one that runs.
INSTRUCTIONS = {
    ("ss2d_forward", 1): ((98, 8), 190.0),
    ("ss2d_forward", 2): ((98, 8, 8 / 8), 450.0),
    # The whole kernel by the 8 steps of a tile, the loop over pairs of states counted once.
    ("ss2d_backward", 1): (8, 390.0),
    ("ss2d_backward", 2): (8, 445.0),
    # The second stages: the whole kernel, which makes one value of a result.
    ("ss2d_reduce_rows", 0): (1, 540.0),
    ("ss2d_reduce_weights", 0): (1, 585.0),
}
