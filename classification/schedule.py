"""The learning rate over the updates: warm-up, then cosine, linear, step or multistep."""

from __future__ import annotations

import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from yacs.config import CfgNode


class LinearLRScheduler(Scheduler):
    """Warm-up from `warmup_lr_init`, then a straight line from the base rate to `lr_min` at `t_initial` updates."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        t_initial: int,
        lr_min: float,
        warmup_t: int = 0,
        warmup_lr_init: float = 0.0,
    ) -> None:
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.t_initial, self.lr_min = t_initial, lr_min
        self.warmup_t, self.warmup_lr_init = warmup_t, warmup_lr_init
        if warmup_t:
            self.update_groups(warmup_lr_init)

    def _get_lr(self, t: int) -> list[float]:
        if t < self.warmup_t:
            return [self.warmup_lr_init + t * (v - self.warmup_lr_init) / self.warmup_t for v in self.base_values]
        share = min((t - self.warmup_t) / max(self.t_initial - self.warmup_t, 1), 1.0)
        return [v + (self.lr_min - v) * share for v in self.base_values]


def build_schedule(
    config: CfgNode, optimizer: torch.optim.Optimizer, updates_per_epoch: int, scale: float
) -> Scheduler:
    """Return the schedule per update; `scale` is the factor of `learning_rate_scale` on its lowest and first rate.

    Update number n (from 0) runs at the rate of ``step_update(n)``. With ``WARMUP_PREFIX`` the curve starts after the
    warm-up and still ends with the last epoch.
    """
    train, kind = config.TRAIN, config.TRAIN.LR_SCHEDULER
    total, warmup = train.EPOCHS * updates_per_epoch, train.WARMUP_EPOCHS * updates_per_epoch
    start, lowest = train.WARMUP_LR * scale, train.MIN_LR * scale
    schedule: Scheduler
    if kind.NAME == "cosine":
        schedule = CosineLRScheduler(
            optimizer,
            t_initial=max(total - warmup, 1) if kind.WARMUP_PREFIX else total,
            lr_min=lowest,
            warmup_lr_init=start,
            warmup_t=warmup,
            cycle_limit=1,
            t_in_epochs=False,
            warmup_prefix=kind.WARMUP_PREFIX,
        )
    elif kind.NAME == "linear":
        schedule = LinearLRScheduler(optimizer, t_initial=total, lr_min=lowest, warmup_t=warmup, warmup_lr_init=start)
    elif kind.NAME == "step":
        schedule = StepLRScheduler(
            optimizer,
            decay_t=kind.DECAY_EPOCHS * updates_per_epoch,
            decay_rate=kind.DECAY_RATE,
            warmup_lr_init=start,
            warmup_t=warmup,
            warmup_prefix=kind.WARMUP_PREFIX,
            t_in_epochs=False,
        )
    else:
        schedule = MultiStepLRScheduler(
            optimizer,
            # timm looks one update ahead
            decay_t=[epoch * updates_per_epoch + 1 for epoch in sorted(kind.MULTISTEPS)],
            decay_rate=kind.GAMMA,
            warmup_lr_init=start,
            warmup_t=warmup,
            warmup_prefix=False,
            t_in_epochs=False,
        )
    schedule.step_update(0)
    return schedule
