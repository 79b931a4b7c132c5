"""The setting that figures depend on: machine, versions, threads, matrix precision, in one line for a method."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from vmamba.devices import device_name
from vmamba_kernels import native


def machine(device: torch.device) -> str:
    """Return what a device is called, and how many threads PyTorch has on a CPU."""
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    return f"{device_name(device)}{threads}"


def setting(device: torch.device) -> str:
    """Return device, threads, versions and backends in a line."""
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm", "numpy")]
    backends = [f"{row.operator} {row.backend}" for row in native.explain() if row.device == device.type]
    cuda = [] if device.type == "cpu" else [f"CUDA {torch.version.cuda}"]
    return "; ".join(
        [machine(device), *cuda, f"python {platform.python_version()}, {', '.join(packages)}", ", ".join(backends)]
    )
