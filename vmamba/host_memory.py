"""How the C library gives memory to tensors on the CPU."""

from __future__ import annotations

import ctypes
import platform

# From glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Keep the memory of freed tensors in this process, and return whether the C library can be told so.

    glibc hands large blocks back to the system at once, and each new tensor of that size pays for its pages again. What
    that costs depends on the machine: alternating processes on 2 cores showed less than their own spread of 15 %. The
    process keeps its peak memory until it ends, so this is for programs that train or measure, not for a library to do
    unasked.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_TOP_PAD, 64 << 20)])
