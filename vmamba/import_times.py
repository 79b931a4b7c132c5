"""How long this package takes to import, beyond what it builds on."""

from __future__ import annotations

import statistics
import subprocess
import sys

# What is timed, and what is imported before.
IMPORTS = (("vmamba", "torch"), ("vmamba_kernels", "torch"), ("vmamba.models", "torch, timm"))
_CODE = "import {before}, time; start = time.perf_counter(); import {name}; print(time.perf_counter() - start)"


def seconds(name: str, before: str, rounds: int = 5) -> float:
    """Return the median time that `import NAME` takes in a fresh process, after the import of `before`."""
    command = [sys.executable, "-c", _CODE.format(name=name, before=before)]
    runs = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(rounds))
    return statistics.median(float(run.stdout) for run in runs)


def import_times(rounds: int = 5) -> list[tuple[str, str]]:
    """Return (what is imported, its seconds in words) for the packages here."""
    return [
        (f"import {name}", f"{seconds(name, before, rounds):.3f} s beyond import {before}") for name, before in IMPORTS
    ]
