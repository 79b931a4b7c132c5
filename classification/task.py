"""What a run learns: the part of a run that differs between a classifier and a masked autoencoder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from yacs.config import CfgNode

if TYPE_CHECKING:
    from classification.data import Data
    from classification.train import Trainer
    from classification.world import World


class Scored(Protocol):
    """What an evaluation answers: `merit`, higher when better, in percent."""

    @property
    def merit(self) -> float:
        """What decides which weights are the best of a run."""


class Task(Protocol):
    """The loss of a batch, the score of a set of weights, and what both leave in the run folder.

    `program` is how it is run, and `noun` what `Scored.merit` is called in the log.
    """

    program: str
    noun: str

    def check(self, config: CfgNode, stated: set[str]) -> None:
        """Raise `UserError` for settings that are another task's."""

    def loss(self, trainer: Trainer, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch."""

    def new_findings(self, config: CfgNode, data: Data) -> Any:
        """Return what collects more than the score during one evaluation, or None when ``REPORT`` is off."""

    def score(self, trainer: Trainer, network: nn.Module, data: Data, findings: Any = None, final: bool = False) -> Any:
        """Return the `Scored` of `network` over the held-out images, the same on every process.

        `final` is for the evaluation after a run: it writes no lines, and no signal ends it.
        """

    def told(self, label: str, score: Any) -> str:
        """Return the line of the log that tells a score; `label` is "" or " ema"."""

    def row(self, score: Any) -> dict[str, float]:
        """Return the columns of ``metrics.csv`` that a score fills."""

    def report(self, findings: Any, score: Any, weights: Path, run: Path, world: World, logger: logging.Logger) -> None:
        """Write the findings about the file `weights` into the folder of a run."""

    def close(self, config: CfgNode, run: Path, logger: logging.Logger) -> None:
        """Write what a finished run leaves beside its report."""
