"""What the CUDA kernels of ss2d may use, by kernel and states taken at once; 65536 registers serve a multiprocessor."""

from __future__ import annotations

# With 256 threads to a block two blocks share a multiprocessor at 128 registers and one at 255.
REGISTERS = {
    ("ss2d_forward", 1): 128,
    ("ss2d_forward", 2): 255,
    ("ss2d_backward", 1): 255,
    ("ss2d_backward", 2): 255,
    ("ss2d_reduce_rows", 0): 48,
    ("ss2d_reduce_weights", 0): 48,
}
# Kernels of one source file: d_state 1, 16 and any, forward and backward, and the two reductions.
KERNELS = 8
