"""What the kernels of ss2d_bf16.cu, ss2d_f16.cu and ss2d_f32.cu may use; the number is that of states taken at once."""

# With 256 threads to a block two blocks share a multiprocessor at 128 registers and one at 255.
CEILINGS = {
    ("ss2d_forward", 1): 128,
    ("ss2d_forward", 2): 255,
    ("ss2d_backward", 1): 255,
    ("ss2d_backward", 2): 255,
    ("ss2d_reduce_rows", 0): 48,
    ("ss2d_reduce_weights", 0): 48,
}
# Of each source: d_state 1, 16 and any, forward and backward, and the two reductions.
INSTANCES = 8
# Positions come four at a time; each channel is read by a lane of its own.
LOAD_BITS = {"ss2d_forward": 128, "ss2d_backward": 128}
