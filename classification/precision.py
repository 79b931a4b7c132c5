"""Mixed precision: which type, and the loss scaling that float16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from yacs.config import CfgNode


class Precision:
    """Autocast and gradient scaling of a run.

    ``AMP_DTYPE auto`` is float16 on a GPU, as published, and float32 on a CPU, where lower precision is emulated on
    most machines; ``bfloat16`` and ``float16`` are taken as asked on both.
    """

    def __init__(self, config: CfgNode, device: torch.device) -> None:
        self.device = device
        self.dtype: torch.dtype | None = None
        if config.AMP_ENABLE:
            named = {"float16": torch.float16, "bfloat16": torch.bfloat16}
            on_gpu = torch.float16 if device.type == "cuda" else None
            self.dtype = named.get(config.AMP_DTYPE, on_gpu)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> AbstractContextManager:
        """Return the context in which the network runs."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    @property
    def scale(self) -> float:
        """The present loss scale; 1 without scaling."""
        return float(self.scaler.get_scale()) if self.scaler.is_enabled() else 1.0

    def __str__(self) -> str:
        return "float32" if self.dtype is None else str(self.dtype).removeprefix("torch.")
