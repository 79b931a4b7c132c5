"""Stochastic depth over the epochs of a run."""

from __future__ import annotations

from timm.layers import DropPath
from torch import nn
from yacs.config import CfgNode

DROP_PATH_SCHEDULES = ("constant", "linear", "early", "late")


class DropPathSchedule:
    """Scales the drop-path rate of every block by a share that depends on the epoch.

    ``constant``: the configured rates, as published. ``linear``: the share grows from 0 in the first epoch to 1 after
    ``EPOCHS`` of them. ``early``: 1 for ``EPOCHS`` and 0 afterwards; ``late``: 0 and then 1 (Liu et al., "Dropout
    Reduces Underfitting", 2023). 0 ``EPOCHS`` are all of the run.
    """

    def __init__(self, config: CfgNode, network: nn.Module) -> None:
        schedule = config.TRAIN.DROP_PATH_SCHEDULE
        self.name, self.epochs = schedule.NAME, schedule.EPOCHS or config.TRAIN.EPOCHS
        self._rates = [(m, m.drop_prob) for m in network.modules() if isinstance(m, DropPath)]

    def share(self, epoch: int) -> float:
        """Return the factor on the rates in epoch number `epoch`, counted from 0."""
        begun = epoch < self.epochs
        shares = {"linear": min(epoch / self.epochs, 1.0), "early": float(begun), "late": float(not begun)}
        return shares.get(self.name, 1.0)

    def __call__(self, epoch: int) -> None:
        """Set the rates of epoch number `epoch`."""
        for module, rate in self._rates:
            module.drop_prob = rate * self.share(epoch)
