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
# With 8 taps a block has a multiprocessor of sm_120 to itself: 128 registers would spill there.
NEWER = {("conv_reduce", 0): 64}
CEILINGS_OF = {"sm_100": NEWER, "sm_120": NEWER | {("conv_backward_last", 8): 192}}
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
# By output: loops over images and groups, where a thread owns 16 steps of 8 or 4 channels (backward: of 4 or 2), then
# over as many steps as there are taps; where time steps lie side by side, over groups, 8 steps each.
INSTRUCTIONS = {
    ("conv_forward_last", 4): ((128, 128, 32), 27.0),
    ("conv_forward_last", 8): ((64, 64, 32), 49.0),
    ("conv_forward_first", 4): ((8,), 68.0),
    ("conv_forward_first", 8): ((8,), 71.0),
    ("conv_backward_last", 4): ((64, 16), 71.0),
    ("conv_backward_last", 8): ((32, 16), 140.0),
    ("conv_backward_first", 4): ((8,), 110.0),
    ("conv_backward_first", 8): ((8,), 158.0),
    # The second stage: the whole kernel, which makes one value of a result.
    ("conv_reduce", 0): (1, 510.0),
}
