"""Memory of tensors: how much a call takes on the CPU, how the C library gives it, and whether it ran out."""

from __future__ import annotations

import ctypes
import platform

import torch

from vmamba.steps import Step

# From glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Keep the memory of freed tensors in this process, and return whether the C library can be told so.

    glibc hands large blocks back to the system at once, and each new tensor of that size pays for its pages again. What
    that costs depends on the machine and on the tensors: on 2 cores networks of fused operators showed less than the
    spread of 15 % between runs, a plain parallel scan took 2 to 3 times as long (docs/vim_fastvim.md). The process
    keeps its peak memory until it ends, so this is for programs that train or measure, not for a library to do unasked.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_TOP_PAD, 64 << 20)])


def allocated_by(step: Step) -> int:
    """Return the most bytes of the CPU allocator that lived at once in a call, above those that lived before it.

    Every allocation and release in the call counts, as PyTorch's profiler tells them.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    if not events:
        raise RuntimeError("the profiler of this torch reports no allocations")
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def living(model: torch.nn.Module, optimizer_copies: int, images: torch.Tensor) -> int:
    """Return the bytes of the weights, of what AdamW keeps of them and of the images."""
    return (1 + optimizer_copies) * sum(p.nbytes for p in model.parameters()) + images.nbytes


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or on the host."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(w in str(error) for w in words)
