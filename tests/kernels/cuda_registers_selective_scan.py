"""What the kernels of selective_scan.cu may use; `cuda_compiled.py` says what each table means."""

# 65536 / (128 threads * registers) blocks fit a multiprocessor.
CEILINGS = {
    ("scan_forward", 1): 96,
    ("scan_forward", 4): 128,
    ("scan_forward", 16): 128,
    ("scan_backward", 1): 128,
    ("scan_backward", 2): 255,
    ("gradient_ends", 0): 96,
    ("reduce_projections", 0): 48,
    ("reduce_weights", 0): 48,
    ("reduce_delta", 0): 48,
    ("join_segments", 0): 48,
}
# With 1 state 4 blocks, where sm_90 and sm_80 fit 5; with more of them 3, where 128 registers would spill.
NEWER = {("scan_forward", 1): 120, ("scan_forward", 4): 168, ("scan_forward", 16): 168}
CEILINGS_OF = {"sm_100": NEWER, "sm_120": NEWER}
INSTANCES = 26
# Bytes; a multiprocessor less full would cost more than they do.
SPILLS = {("sm_80", "scan_backward"): 16}
ATOMICS = ("scan_backward",)
LOAD_BITS = {"scan_forward": 128, "scan_backward": 128}
STORE_BITS = {"scan_forward": 128, "scan_backward": 128}
# Loops: windows of 32 steps, 8 steps; where 4 states are held also a turn over those, of which 4 states take one.
# Backward: windows, 8 steps of dt, then 32 steps of 1 or 2 states at a time; at 16 states those 32 take 8 turns.
INSTRUCTIONS = {
    ("scan_forward", 1): ((32, 8), 112.0),
    ("scan_forward", 4): ((32, 8, 8), 155.0),
    ("scan_forward", 16): ((32, 8), 215.0),
    ("scan_backward", 1): ((32, 8, 32), 158.0),
    ("scan_backward", 2): ((32, 8, 32 / 8), 780.0),
    # The second stages and what joins segments: the whole kernel, which makes one value of a result.
    ("gradient_ends", 0): (1, 650.0),
    ("reduce_projections", 0): (1, 320.0),
    ("reduce_weights", 0): (1, 470.0),
    ("reduce_delta", 0): (1, 415.0),
    ("join_segments", 0): (1, 430.0),
}
