"""Running values of a loop, and the memory that a process holds."""

from __future__ import annotations

import resource
import time

import torch


class Meter:
    """The last value and the mean so far."""

    def __init__(self) -> None:
        self.val = self.sum = 0.0
        self.count = 0

    def update(self, value: float, weight: int = 1) -> None:
        """Take in a value that stands for `weight` items."""
        self.val = value
        self.sum += value * weight
        self.count += weight

    @property
    def avg(self) -> float:
        """The mean so far."""
        return self.sum / max(self.count, 1)

    def text(self, digits: int = 4) -> str:
        """Return "last (mean)"."""
        return f"{self.val:.{digits}f} ({self.avg:.{digits}f})"


class Clock:
    """Seconds since the last call."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        return passed


def memory_megabytes(device: torch.device) -> float:
    """Return the peak memory: of the GPU, or of the process where it runs on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
