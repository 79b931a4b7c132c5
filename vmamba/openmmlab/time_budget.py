"""Training for a number of minutes: for networks compared at equal cost, and for examples that end on time."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

_TRAINED = "seconds_trained"


@HOOKS.register_module()
class TimeBudget(Hook):
    """Ends training by iterations when `minutes` have passed, with the checkpoint and evaluation of the last iteration.

    The learning rates rise in the first `warmup` part of the time and then fall to 0 along half a cosine; the
    configuration names no other schedule. With 0 minutes one iteration at rate 0 is made and the untrained network
    evaluated. A resumed run has what was left.
    """

    priority = "HIGHEST"  # before the rate is logged

    def __init__(self, minutes: float, warmup: float = 0.05) -> None:
        if minutes < 0 or not 0 <= warmup < 1:
            raise ValueError(f"minutes, warmup: expected at least 0 and a part of 1, got {minutes} and {warmup}")
        self.minutes, self.warmup = minutes, warmup
        self.trained_before, self.start = 0.0, 0.0

    def before_train(self, runner: Any) -> None:
        self.trained_before = runner.message_hub.get_info(_TRAINED, 0.0)
        self.start = time.monotonic()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        factor = rate_factor(self._part(runner), self.warmup)
        for group in runner.optim_wrapper.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._part(runner) >= 1:
            runner.train_loop._max_iters = runner.iter + 1

    def _part(self, runner: Any) -> float:
        """The part of the time that has passed, the same on every rank."""
        passed = torch.tensor(self.trained_before + time.monotonic() - self.start, dtype=torch.float64)
        broadcast(passed)
        runner.message_hub.update_info(_TRAINED, passed.item())
        return min(1.0, passed.item() / (60 * self.minutes)) if self.minutes else 1.0


def rate_factor(part: float, warmup: float) -> float:
    """Return the factor of the learning rate after `part` of the time: linear up to `warmup`, then a half cosine."""
    if part < warmup:
        return part / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (part - warmup) / (1 - warmup))
