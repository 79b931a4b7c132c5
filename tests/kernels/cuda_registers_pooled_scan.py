"""Ceilings for what nvcc makes of kernels/csrc/cuda/pooled_scan.cu."""

from __future__ import annotations

# Registers by kernel and groups that it adds: at 128 of them a multiprocessor holds 512 threads.
CEILINGS: dict[tuple[str, int], int] = {
    ("expand_rows", 1): 64,
    ("expand_rows", 2): 80,
    ("expand_columns", 1): 56,
    ("expand_columns", 2): 64,
    ("gather_rows", 1): 80,
    ("gather_rows", 2): 128,
    ("gather_columns", 1): 56,
    ("gather_columns", 2): 56,
    ("add_rows", 0): 40,
}
INSTANCES = 41
LOAD_BITS: dict[str, int] = {"expand_rows": 128, "expand_columns": 128, "gather_rows": 128}
STORE_BITS: dict[str, int] = {"expand_rows": 128, "expand_columns": 128, "gather_rows": 128}
