"""Learning the labels of images: accuracy, confusion matrix, model card."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor, nn
from yacs.config import CfgNode

from classification.arguments import PROGRAM
from classification.data import Data
from classification.evaluate import Score, evaluate
from classification.findings import Findings
from classification.report import add_model_card, new_findings, write_report
from classification.train import Trainer, loss_of_labels
from classification.world import World
from vmamba.errors import UserError
from vmamba.models.from_config import is_autoencoder


class Labels:
    """The `Task` of a classifier."""

    program = PROGRAM
    noun = "accuracy"

    def check(self, config: CfgNode, stated: set[str]) -> None:
        """Refuse an autoencoder."""
        if is_autoencoder(config):
            raise UserError(
                f"{config.MODEL.ARCH or config.MODEL.NAME} learns without labels; train it with: "
                "python -m classification.mae"
            )

    def loss(self, trainer: Trainer, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the labels, see `loss_of_labels`."""
        return loss_of_labels(trainer, images, labels)

    def new_findings(self, config: CfgNode, data: Data) -> Findings | None:
        """Return what collects figures per class and the worst predictions."""
        return new_findings(config, data)

    def score(
        self, trainer: Trainer, network: nn.Module, data: Data, findings: Findings | None = None, final: bool = False
    ) -> Score:
        """Return the accuracies."""
        return evaluate(
            network,
            data.held_out,
            trainer.precision,
            trainer.world,
            logging.Logger("report") if final else trainer.logger,
            trainer.config.PRINT_FREQ,
            on_counted=(lambda: None) if final else (lambda: trainer.stopping.check(trainer.world)),
            findings=findings,
        )

    def told(self, label: str, score: Score) -> str:
        """Return the published line."""
        return f"Accuracy of the network{label} on the {score.images} test images: {score.top1:.1f}%"

    def row(self, score: Score) -> dict[str, float]:
        """Return loss and accuracies."""
        return {"val_loss": score.loss, "acc1": score.top1, "acc5": score.top5}

    def report(
        self, findings: Findings | None, score: Score, weights: Path, run: Path, world: World, logger: logging.Logger
    ) -> None:
        """Write confusion matrix, figures per class and worst predictions."""
        write_report(findings, score, weights, run, world, logger)

    def close(self, config: CfgNode, run: Path, logger: logging.Logger) -> None:
        """Write the model card."""
        add_model_card(config, run, logger)


LABELS = Labels()
