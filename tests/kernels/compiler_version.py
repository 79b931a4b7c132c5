"""The version of a compiler, for the names of what it made."""

from __future__ import annotations

import subprocess
from functools import lru_cache


@lru_cache
def version(compiler: str) -> str:
    """What the compiler says of itself."""
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
