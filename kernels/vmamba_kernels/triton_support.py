"""Whether Triton kernels can run: found without importing Triton, so that `import vmamba_kernels` stays light."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec

from .backends import Backend

INSTALLED = find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def missing() -> str:
    """Why no Triton kernel can run here, with the remedy; "" if it can."""
    if not INSTALLED:
        return "triton is not installed; pip install triton (Linux only)"
    return ""


# The entry of an operator's Triton kernels: `triton_backend("cross_scan")`. They run on NVIDIA GPUs; with
# TRITON_INTERPRET=1 in the environment from the start also on the CPU, slowly, when they are asked for by name.
triton_backend = partial(
    Backend, name="triton", devices=("cuda",), on_request=("cpu",) if INTERPRETED else (), missing=missing
)
