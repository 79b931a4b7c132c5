"""Images that cannot be read: counted over all processes, listed in ``bad_samples.txt``, and the end when too many.

A line of the list is ``split TAB image TAB reason``. In training the next readable image takes the place of a bad one,
the same one in every run; in evaluation a bad one is left out, and the score says of how many images it is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from classification.world import World
from vmamba.errors import UserError

LIST = "bad_samples.txt"


@dataclass(frozen=True)
class BadImage:
    """An image that could not be read, on its way from a loader to the main process."""

    split: str
    name: str
    reason: str
    index: int = -1

    @property
    def line(self) -> str:
        """Its line of the list."""
        return f"{self.split}\t{self.name}\t{self.reason}"


class Loaded(NamedTuple):
    """One batch from a loader process, the images that it did without, and why the run cannot go on, if so."""

    images: torch.Tensor | None
    labels: torch.Tensor | None
    bad: list[BadImage]
    fatal: str = ""


class BadSamples:
    """What could not be read since this start, on all processes; above `limit` images the run ends on all of them."""

    def __init__(
        self, limit: int, world: World, folder: Path | None = None, logger: logging.Logger | None = None
    ) -> None:
        self.limit, self.world = limit, world
        self._path = folder / LIST if folder is not None else None
        self._logger = logger
        self._found: dict[tuple[str, str], BadImage] = {}
        self._new: dict[tuple[str, str], BadImage] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, images: list[BadImage]) -> None:
        """Take what one batch of this process came across; alone, settle it now, else at the next `agree`."""
        for image in images:
            key = (image.split, image.name)
            if key not in self._found:
                self._new[key] = image
        if self._new and self.world.size == 1:
            self.agree()

    def agree(self) -> None:
        """Bring what all processes found together, list it, and raise `UserError` on all of them when it is too much.

        All processes call it at the same place.
        """
        if not self.world.sum(torch.tensor(len(self._new))).item():
            return
        before = set(self._found)
        for found in self.world.gather(self._new):
            self._found |= found
        self._new = {}
        self.world.from_first(lambda: self._settle([self._found[key] for key in self._found if key not in before]))

    def _settle(self, new: list[BadImage]) -> None:
        self._write(new)
        if self._logger is not None and self.limit:
            for image in new:
                done = "it is left out" if image.split == "val" else "the next one takes its place"
                self._logger.warning(f"cannot read the image {image.name}: {image.reason}; {done}")
        if len(self._found) <= self.limit:
            return
        if self.limit == 0:
            raise UserError(refusal(new[:1]))
        where = f", listed in {self._path}" if self._path is not None else ""
        raise UserError(
            f"{len(self._found)} images cannot be read{where}, more than DATA.MAX_BAD {self.limit}; the last: "
            f"{new[-1].name}: {new[-1].reason}; repair or remove them, or raise DATA.MAX_BAD"
        )

    def _write(self, new: list[BadImage]) -> None:
        """Add the lines that the list does not have yet, from an earlier start for instance."""
        if self._path is None:
            return
        try:
            present = set(self._path.read_text(encoding="utf-8").split("\n")) if self._path.is_file() else set()
            with open(self._path, "a", encoding="utf-8") as file:
                file.writelines(f"{image.line}\n" for image in new if image.line not in present)
        except OSError as error:
            if self._logger is not None:
                self._logger.warning(f"cannot write {self._path}: {error.strerror}")


def refusal(images: list[BadImage]) -> str:
    """Return the error of a run that must not go on without `images`."""
    last = images[-1]
    more = f", nor can the {len(images) - 1} before it" if len(images) > 1 else ""
    return (
        f"cannot read the image {last.name}: {last.reason}{more}; repair or remove it, or raise DATA.MAX_BAD, the "
        "number of images that a run may skip"
    )
