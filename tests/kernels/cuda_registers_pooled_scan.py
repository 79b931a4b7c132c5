"""Ceilings for what nvcc makes of kernels/csrc/cuda/pooled_scan.cu."""

from __future__ import annotations

# Registers by kernel and groups that it adds: at 96 of them a multiprocessor holds 640 threads, at 128 512.
CEILINGS: dict[tuple[str, int], int] = {
    ("expand_rows", 1): 64,
    ("expand_rows", 2): 88,
    ("expand_columns", 1): 56,
    ("expand_columns", 2): 72,
    ("gather_rows", 1): 96,
    ("gather_rows", 2): 128,
    ("gather_columns", 1): 64,
    ("gather_columns", 2): 80,
    ("add_rows", 0): 40,
}
INSTANCES = 41
LOAD_BITS: dict[str, int] = {"expand_rows": 128, "expand_columns": 128, "gather_rows": 128}
STORE_BITS: dict[str, int] = {"expand_rows": 128, "expand_columns": 128, "gather_rows": 128}
# The whole kernel by the tokens and channels of one turn: two vectors of 8 channels, one of 8 tokens, or 4 tokens.
INSTRUCTIONS: dict[tuple[str, int], tuple[tuple[float, ...], float]] = {
    ("expand_rows", 1): ((16,), 68.0),
    ("expand_rows", 2): ((16,), 92.0),
    ("expand_columns", 1): ((8,), 108.0),
    ("expand_columns", 2): ((8,), 156.0),
    ("gather_rows", 1): ((16,), 82.0),
    ("gather_rows", 2): ((16,), 114.0),
    ("gather_columns", 1): ((4,), 180.0),
    ("gather_columns", 2): ((4,), 228.0),
    # The second stage: the whole kernel, which makes one value of a result.
    ("add_rows", 0): (1, 265.0),
}
