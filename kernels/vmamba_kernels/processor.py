"""What the CPU is called, for records of what was measured on it."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """Return what the CPU calls itself, or its architecture where it does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
