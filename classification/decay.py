"""The weight decay over a run."""

from __future__ import annotations

import math

import torch
from yacs.config import CfgNode


class DecaySchedule:
    """Called with the number of an update, gives the decayed parameters their weight decay for it.

    Half a cosine from ``TRAIN.WEIGHT_DECAY`` to ``TRAIN.WEIGHT_DECAY_END`` over all `updates` of the run; without such
    an end nothing changes. It has no state: the place follows from the number.
    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, section 3.2.
    """

    def __init__(self, config: CfgNode, optimizer: torch.optim.Optimizer, updates: int) -> None:
        self.optimizer, self.updates = optimizer, max(updates, 1)
        self.first, self.last = config.TRAIN.WEIGHT_DECAY, config.TRAIN.WEIGHT_DECAY_END
        self.decayed = [n for n, group in enumerate(optimizer.param_groups) if group["weight_decay"] > 0]

    def __call__(self, update: int) -> None:
        """Set the weight decay of update number `update`, counted from 0."""
        if self.last is None:
            return
        share = min(update / self.updates, 1.0)
        value = self.last + (self.first - self.last) * (1 + math.cos(math.pi * share)) / 2
        for number in self.decayed:
            self.optimizer.param_groups[number]["weight_decay"] = value
