"""The setting that figures depend on: machine, versions, threads, matrix precision, in one line for a method."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from vmamba.devices import device_name
from vmamba_kernels import native


def setting(device: torch.device) -> str:
    """Return device, threads, versions and backends in a line."""
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm", "numpy")]
    backends = [f"{row.operator} {row.backend}" for row in native.explain() if row.device == device.type]
    parts = [device_name(device)]
    parts += [f"{torch.get_num_threads()} threads"] if device.type == "cpu" else [f"CUDA {torch.version.cuda}"]
    return "; ".join([*parts, f"python {platform.python_version()}, {', '.join(packages)}", ", ".join(backends)])
