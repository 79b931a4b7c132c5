"""The learning rate over a run: warm-up, then timm's schedules or a straight line, then a cool-down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.scheduler import (
    CosineLRScheduler,
    MultiStepLRScheduler,
    PlateauLRScheduler,
    PolyLRScheduler,
    StepLRScheduler,
    TanhLRScheduler,
)
from timm.scheduler.scheduler import Scheduler
from yacs.config import CfgNode

from vmamba.errors import UserError

SCHEDULES = ("cosine", "linear", "step", "multistep", "tanh", "poly", "plateau", "constant")
_CURVES: dict[str, Callable[..., Scheduler]] = {
    "cosine": CosineLRScheduler,
    "tanh": TanhLRScheduler,
    "poly": PolyLRScheduler,
}
# Attributes of torch's ReduceLROnPlateau that scores move; the others are settings.
_MOVED_BY_SCORES = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


class LinearLRScheduler(Scheduler):
    """Warm-up from `warmup_lr_init`, then a straight line from the base rate to `lr_min` at `t_initial` updates."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        t_initial: int,
        lr_min: float,
        warmup_t: int = 0,
        warmup_lr_init: float = 0.0,
        **noise: Any,
    ) -> None:
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False, **noise)
        self.t_initial, self.lr_min = t_initial, lr_min
        self.warmup_t, self.warmup_lr_init = warmup_t, warmup_lr_init
        if warmup_t:
            self.update_groups(warmup_lr_init)

    def _get_lr(self, t: int) -> list[float]:
        if t < self.warmup_t:
            return [self.warmup_lr_init + t * (v - self.warmup_lr_init) / self.warmup_t for v in self.base_values]
        share = min((t - self.warmup_t) / max(self.t_initial - self.warmup_t, 1), 1.0)
        return [v + (self.lr_min - v) * share for v in self.base_values]


class PlateauSchedule(PlateauLRScheduler):
    """timm's plateau schedule, moved by the score of each epoch, with a state that a resumed run continues from."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the score has done to the rates so far, as plain data."""
        groups = self.optimizer.param_groups
        state = {key: getattr(self.lr_scheduler, key) for key in _MOVED_BY_SCORES}
        rates, bases = [group["lr"] for group in groups], [group["initial_lr"] for group in groups]
        return {**state, "rates": rates, "bases": bases, "restore": self.restore_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the `state_dict` of another one, whose base rates may be others."""
        bases, groups = state_dict["bases"], self.optimizer.param_groups

        def rescaled(rates: list[float]) -> list[float]:
            own = [group["initial_lr"] for group in groups]
            return [rate if old == new else rate * new / old for rate, old, new in zip(rates, bases, own)]

        for group, rate in zip(groups, rescaled(state_dict["rates"])):
            group["lr"] = rate
        restore = state_dict["restore"]
        self.restore_lr = rescaled(restore) if restore else None  # type: ignore[assignment]
        for key in _MOVED_BY_SCORES:
            setattr(self.lr_scheduler, key, state_dict[key])


def build_schedule(
    config: CfgNode, optimizer: torch.optim.Optimizer, updates_per_epoch: int, scale: float
) -> Scheduler:
    """Return the schedule per update; `scale` is the factor of `learning_rate_scale` on its lowest and first rate.

    Update number n (from 0) runs at the rate of ``step_update(n)``; `plateau` moves at ``step(epoch, score)`` alone.
    With ``WARMUP_PREFIX`` the curve starts after the warm-up. It ends ``COOLDOWN_EPOCHS`` before the last epoch.
    """
    kind = config.TRAIN.LR_SCHEDULER
    try:
        schedule = _build(config, optimizer, updates_per_epoch, scale, dict(kind.ARGS))
    except TypeError as error:
        raise UserError(f"TRAIN.LR_SCHEDULER.ARGS {dict(kind.ARGS)} do not fit {kind.NAME}: {error}") from None
    schedule.step_update(0)
    return schedule


def _build(
    config: CfgNode, optimizer: torch.optim.Optimizer, per_epoch: int, scale: float, more: dict[str, Any]
) -> Scheduler:
    train, kind = config.TRAIN, config.TRAIN.LR_SCHEDULER
    end, warmup = (train.EPOCHS - kind.COOLDOWN_EPOCHS) * per_epoch, train.WARMUP_EPOCHS * per_epoch
    lowest = train.MIN_LR * scale
    prefix: dict[str, Any] = {"warmup_prefix": kind.WARMUP_PREFIX}
    warm: dict[str, Any] = {"warmup_t": warmup, "warmup_lr_init": train.WARMUP_LR * scale}
    if kind.NAME in _CURVES:
        length = max(end - warmup, 1) if kind.WARMUP_PREFIX else end
        timing: dict[str, Any] = {"t_initial": length, "lr_min": lowest, "t_in_epochs": False}
        return _CURVES[kind.NAME](optimizer, **{**timing, **warm, **prefix, **more})
    if kind.NAME == "linear":
        return LinearLRScheduler(optimizer, **{"t_initial": end, "lr_min": lowest, **warm, **more})
    if kind.NAME == "multistep":
        # timm looks one update ahead
        epochs = [epoch * per_epoch + 1 for epoch in sorted(kind.MULTISTEPS)]
        steps: dict[str, Any] = {
            "decay_t": epochs,
            "decay_rate": kind.GAMMA,
            "warmup_prefix": False,
            "t_in_epochs": False,
        }
        return MultiStepLRScheduler(optimizer, **{**steps, **warm, **more})
    if kind.NAME == "plateau":
        patience: dict[str, Any] = {"decay_rate": kind.DECAY_RATE, "patience_t": kind.PATIENCE_EPOCHS, "lr_min": lowest}
        return PlateauSchedule(optimizer, **{**patience, **warm, "warmup_t": train.WARMUP_EPOCHS, **more})
    rate = kind.DECAY_RATE if kind.NAME == "step" else 1.0
    falls: dict[str, Any] = {"decay_t": kind.DECAY_EPOCHS * per_epoch, "decay_rate": rate, "t_in_epochs": False}
    return StepLRScheduler(optimizer, **{**falls, **warm, **prefix, **more})


def continue_schedule(schedule: Scheduler, updates: int, epoch: int, state: dict[str, Any] | None) -> None:
    """Put `schedule` where it is after `updates` updates and `epoch` epochs; the stored `state` is that of scores."""
    if isinstance(schedule, PlateauSchedule):
        if state and "rates" in state:
            schedule.load_state_dict(state)
        elif schedule.warmup_t:  # timm sets the rates of a warm-up at the end of an epoch alone
            schedule.step(min(epoch, schedule.warmup_t))
    schedule.step_update(updates)


def present_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate before the layer-wise scale of a group."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)
