"""What the machine code of kernels/csrc/cuda/causal_conv1d.cu may cost; a number beside a name is its most taps."""

CEILINGS = {
    ("conv_forward_last", 4): 128,
    ("conv_forward_last", 8): 128,
    ("conv_forward_first", 4): 64,
    ("conv_forward_first", 8): 64,
    ("conv_backward_last", 4): 128,
    ("conv_backward_last", 8): 128,
    ("conv_backward_first", 4): 96,
    ("conv_backward_first", 8): 128,
    ("conv_reduce", 0): 40,
}
INSTANCES = 25
# The least of all instances: 4 taps move 128 bits where channels lie side by side (backward: 64 in half types), other
# numbers of taps half or a quarter of that, so that their filters fit into the registers.
LOAD_BITS = {
    "conv_forward_last": 64,
    "conv_forward_first": 128,
    "conv_backward_last": 32,
    "conv_backward_first": 128,
}
STORE_BITS = dict(LOAD_BITS)
