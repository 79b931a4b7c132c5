"""Which device a command computes on, and what it is called."""

from __future__ import annotations

import re

import torch

from vmamba.errors import UserError, closest
from vmamba_kernels.processor import processor_name


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """Return the device called "cpu", "cuda" or "cuda:N"; None and "auto" take a GPU where there is one.

    Raises `UserError` for another name and for a GPU that torch does not see.
    """
    text = str(name or "auto")
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if text == "cpu":
        return torch.device("cpu")
    parts = re.fullmatch(r"cuda(?::(\d+))?", text)
    if parts is None:
        hint = closest(text, ("auto", "cpu", "cuda"))
        raise UserError(f"--device {text}: it is auto, cpu, cuda or cuda:N.{hint}")
    if not torch.cuda.is_available():
        raise UserError(f"--device {text}: torch sees no GPU here; use --device cpu, or see python -m vmamba.doctor")
    count = torch.cuda.device_count()
    if parts[1] and int(parts[1]) >= count:
        raise UserError(f"--device {text}: this machine's GPUs are cuda:0 to cuda:{count - 1}; name one of them")
    return torch.device(text)


def device_name(device: torch.device) -> str:
    """Return what a GPU or the CPU is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
