"""Learning without labels: a masked autoencoder tells the hidden patches of an image from the others."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from classification.config import value_of
from classification.data import Data
from classification.meters import Clock, Meter, memory_megabytes
from classification.reconstruction_picture import Reconstructions
from classification.train import Trainer
from classification.world import World
from vmamba.errors import UserError, closest
from vmamba.models.argument_checks import pair
from vmamba.models.from_config import is_autoencoder
from vmamba.models.mae_variants import MAE_VARIANTS
from vmamba.preprocess import image_size

# Settings that need labels or a head, and the value that turns each off.
_OF_LABELS: dict[str, Any] = {
    "AUG.MIXUP": 0,
    "AUG.CUTMIX": 0,
    "AUG.CUTMIX_MINMAX": None,
    "DISTILL.TYPE": "none",
    "TRAIN.COSUB": False,
    "TRAIN.LOSS.NAME": "cross_entropy",
    "TRAIN.LINEAR_PROBE": False,
    "MODEL.HEAD_NORM": False,
    "TRAINCOST_MODE": False,
}
# Those that do nothing here; their defaults are passed over.
_WITHOUT_EFFECT: dict[str, Any] = {
    "MODEL.LABEL_SMOOTHING": 0,
    "MODEL.DROP_PATH_RATE": 0,
    "MODEL.DROP_RATE": 0,
    "TRAIN.DROP_PATH_SCHEDULE.NAME": "constant",
}


@dataclass(frozen=True)
class Reconstructed:
    """The mean loss over `images` images, and the part of the hidden patches' variance that is told, in percent.

    To tell of each hidden patch its mean alone explains 0 %.
    """

    loss: float
    explained: float
    images: int

    @property
    def merit(self) -> float:
        """The explained variance."""
        return self.explained


class Reconstruction:
    """The `Task` of a masked autoencoder."""

    program = "python -m classification.mae"
    noun = "explained variance"

    def check(self, config: CfgNode, stated: set[str]) -> None:
        """Refuse another network, and settings of labels."""
        if not is_autoencoder(config):
            name = config.MODEL.ARCH or config.MODEL.NAME
            raise UserError(
                f"'{name}' (MODEL.TYPE {config.MODEL.TYPE}) is no masked autoencoder; set MODEL.TYPE timm and "
                f"MODEL.ARCH one of {', '.join(MAE_VARIANTS)}.{closest(name, MAE_VARIANTS)}"
            )
        refused = {**_OF_LABELS, **{key: off for key, off in _WITHOUT_EFFECT.items() if key in stated}}
        for key, off in refused.items():
            value = value_of(config, key)
            if value != off:
                raise UserError(f"{key} {value}: an autoencoder has no labels and no head; set it to {off}")
        size, built = image_size(config), config.MODEL.TIMM.get("img_size")
        if built is not None and pair("MODEL.TIMM.img_size", built) != size:
            raise UserError(
                f"MODEL.TIMM.img_size {built}: an autoencoder sees images of one size, DATA.IMG_SIZE "
                f"{config.DATA.IMG_SIZE}; leave it out"
            )
        named = sorted(set(config.TRAIN.FORWARD) - {"mask_ratio"})
        if named:
            raise UserError(f"TRAIN.FORWARD.{named[0]}: of an autoencoder's forward only mask_ratio can be set")

    def loss(self, trainer: Trainer, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the network itself, with a mask drawn anew for every image."""
        with trainer.precision.autocast():
            return trainer.model(images, **trainer.config.TRAIN.FORWARD)[0].float()

    def new_findings(self, config: CfgNode, data: Data) -> Reconstructions | None:
        """Return what keeps the pictures of some images."""
        return Reconstructions(config.DATA.MEAN, config.DATA.STD) if config.REPORT else None

    @torch.no_grad()
    def score(
        self,
        trainer: Trainer,
        network: nn.Module,
        data: Data,
        findings: Reconstructions | None = None,
        final: bool = False,
    ) -> Reconstructed:
        """Return the mean loss. The masks of a batch follow from its number, so that all epochs are asked the same."""
        autoencoder: Any = network.eval()
        world, every = trainer.world, trainer.config.PRINT_FREQ
        totals = torch.zeros(3, dtype=torch.float64)
        clock, times, losses = Clock(), Meter(), Meter()
        for step, (images, _) in enumerate(data.held_out):
            images = images.to(world.device, non_blocking=True)
            patches = autoencoder.grid[0] * autoencoder.grid[1]
            noise = torch.rand(len(images), patches, generator=torch.Generator().manual_seed(step))
            noise = noise.to(world.device)
            with trainer.precision.autocast():
                loss, predicted, mask = autoencoder(images, noise)
            means = autoencoder.targets(images).mean(2, keepdim=True)
            chance = autoencoder.loss(images, means, mask)
            totals += torch.tensor([float(loss), float(chance), 1.0], dtype=torch.float64) * len(images)
            if findings is not None:
                findings.observe(autoencoder, images, predicted, mask)
            losses.update(float(loss), len(images))
            times.update(clock.lap())
            if step % every == 0 and not final:
                trainer.logger.info(
                    f"Test: [{step}/{len(data.held_out)}]\tTime {times.text(3)}\tLoss {losses.text()}\t"
                    f"Mem {memory_megabytes(world.device):.0f}MB"
                )
        totals = world.sum(totals.to(world.device)).cpu()
        if not final:
            trainer.stopping.check(world)
        loss_sum, chance_sum, images_seen = totals.tolist()
        if not images_seen:
            raise UserError("no held-out image could be read; bad_samples.txt in the run folder names them")
        return Reconstructed(loss_sum / images_seen, 100 * (1 - loss_sum / chance_sum), int(images_seen))

    def told(self, label: str, score: Reconstructed) -> str:
        """Return loss and explained variance."""
        return (
            f"Loss of the network{label} on the {score.images} test images: {score.loss:.4f}, "
            f"{score.explained:.2f}% of the variance explained"
        )

    def row(self, score: Reconstructed) -> dict[str, float]:
        """Return the loss."""
        return {"val_loss": score.loss}

    def report(
        self,
        findings: Reconstructions | None,
        score: Reconstructed,
        weights: Path,
        run: Path,
        world: World,
        logger: logging.Logger,
    ) -> None:
        """Write the picture of the first process's images."""
        if findings is not None and world.first:
            findings.write(run, weights, score.loss, logger)

    def close(self, config: CfgNode, run: Path, logger: logging.Logger) -> None:
        """Say how the encoder goes on."""
        logger.info(f"fine-tune: python -m classification --cfg FILE --finetune {run / 'best.pth'}")


RECONSTRUCTION = Reconstruction()
