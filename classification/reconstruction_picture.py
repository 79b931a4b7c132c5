"""A picture of what a masked autoencoder sees of some images, and what it makes of that."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from classification.report import named_after_weights
from vmamba.errors import UserError
from vmamba.figures import new_figure, write_figure

RECONSTRUCTION = "reconstruction.png"
_IMAGES = 8
_ROWS = ("image", "given", "reconstructed")


class Reconstructions:
    """Keeps the first images of an evaluation: as they are, what is given of them, and the answer, all [n, C, H, W].

    `mean` and `std` are those of the normalisation, which the pictures undo.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))
        self.pictures: list[Tensor] = []

    def observe(self, autoencoder: Any, images: Tensor, predicted: Tensor, mask: Tensor) -> None:
        """Take in a batch and what the network gave for it; all but the first batch are passed over."""
        if self.pictures:
            return
        some = [tensor[:_IMAGES].float() for tensor in (images, predicted, mask)]
        given, answer = autoencoder.pictures(*some)
        for pictures in (some[0], given, answer):
            self.pictures.append((pictures.cpu() * self.std + self.mean).clamp(0, 1))

    def write(self, folder: Path, weights: Path, loss: float, logger: logging.Logger) -> None:
        """Write ``reconstruction.png``, or one named after weights that are not the run's best, into a run's `folder`.

        What hinders it costs a warning.
        """
        if not self.pictures:
            return
        columns = len(self.pictures[0])
        try:
            figure = new_figure(1.3 * columns, 1.45 * len(_ROWS))
            grid = figure.subplots(len(_ROWS), columns, squeeze=False)
            for line, name, pictures in zip(grid, _ROWS, self.pictures):
                for axes, picture in zip(line, pictures):
                    pixels = picture.permute(1, 2, 0).numpy()
                    shown = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]
                    axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
                    axes.set(xticks=[], yticks=[])
                line[0].set_ylabel(name)
            figure.suptitle(f"{weights.name}, loss {loss:.3f}", fontsize=10)
            path = write_figure(figure, folder / named_after_weights(RECONSTRUCTION, weights, folder))
        except (UserError, OSError, ImportError) as error:
            logger.warning(f"there is no picture of reconstructions: {error}")
            return
        logger.info(f"pictures   {path}")
