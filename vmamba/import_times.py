"""How long this package takes to import, beyond what it builds on, and which large libraries it then loads."""

from __future__ import annotations

import statistics
import subprocess
import sys

# What is timed, and what is imported before.
IMPORTS = (("vmamba", "torch"), ("vmamba_kernels", "torch"), ("vmamba.models", "torch, timm"))
# What an import leaves for its first use.
LARGE = ("timm", "triton", "mmengine", "mmdet", "mmseg", "torchvision", "matplotlib")
_CODE = """import {before}, sys, time
there, start = set(sys.modules), time.perf_counter()
import {name}
print(time.perf_counter() - start, *(large for large in {large} if large in sys.modules and large not in there))"""


def measured(name: str, before: str, rounds: int = 5) -> tuple[float, list[str]]:
    """Return the median seconds of `import NAME` in fresh processes after `import BEFORE`, and its LARGE libraries."""
    command = [sys.executable, "-c", _CODE.format(name=name, before=before, large=LARGE)]
    runs = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(rounds))
    answers = [run.stdout.split() for run in runs]
    return statistics.median(float(answer[0]) for answer in answers), answers[0][1:]


def import_times(rounds: int = 5) -> list[tuple[str, str]]:
    """Return (what is imported, its seconds and what it loads in words) for the packages here."""
    rows = []
    for name, before in IMPORTS:
        seconds, loaded = measured(name, before, rounds)
        also = f"loads {', '.join(loaded)}" if loaded else f"loads none of {', '.join(LARGE)}"
        rows.append((f"import {name}", f"{seconds:.3f} s beyond import {before}; {also}"))
    return rows
