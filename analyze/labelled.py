"""Labelled images to measure accuracy on: a folder of class folders, or the digits that scikit-learn brings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from analyze.subject import Subject
from vmamba.errors import OutOfMemory, UserError
from vmamba.features import IMAGE_SUFFIXES
from vmamba.host_memory import out_of_memory

DIGITS = "digits"
HELD_OUT = 5  # every fifth digit


@dataclass(frozen=True)
class Labelled:
    """Images, files or pictures, with their class numbers, and what the classes are called."""

    images: Sequence[Path | Image.Image]
    labels: Sequence[int]
    classes: Sequence[str]
    name: str

    def digest(self) -> str:
        """Return a fingerprint of names, sizes of files and labels."""
        told = hashlib.sha256(self.name.encode())
        for image, label in zip(self.images, self.labels):
            what = image.tobytes() if isinstance(image, Image.Image) else f"{image}:{image.stat().st_size}".encode()
            told.update(what + str(label).encode())
        return told.hexdigest()[:16]


def labelled(folder: Path | None, split: str, classes: Sequence[str] = (), count: int | None = None) -> Labelled:
    """Return a split of ``folder/SPLIT/CLASS/*`` or, for None or "digits", of the bundled digits, thinned to `count`.

    Where `classes` names every folder, its order numbers them; else they are numbered in alphabetical order. Raises
    `UserError` where there is no such folder or no image.
    """
    if count is not None and count < 1:
        raise UserError("--count: give at least 1")
    bundled = folder is None or (str(folder) == DIGITS and not folder.is_dir())
    found = _digits(split) if folder is None or bundled else _folder(folder / split, classes)
    if count is None or count >= len(found.images):
        return found
    chosen = [round(i * (len(found.images) - 1) / max(count - 1, 1)) for i in range(count)]
    return Labelled([found.images[i] for i in chosen], [found.labels[i] for i in chosen], found.classes, found.name)


def _folder(root: Path, classes: Sequence[str]) -> Labelled:
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not names:
        raise UserError(f"--data: {root} holds no class folders; images are expected as {root}/CLASS/IMAGE.jpg")
    numbers = {name: i for i, name in enumerate(classes if set(names) <= set(classes) else names)}
    images, labels = [], []
    for name in names:
        for path in sorted((root / name).rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                images.append(path)
                labels.append(numbers[name])
    if not images:
        raise UserError(f"--data: {root} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return Labelled(images, labels, names, str(root))


def _digits(split: str) -> Labelled:
    from sklearn.datasets import load_digits

    data = load_digits()
    held_out = np.arange(len(data.images)) % HELD_OUT == 0
    chosen = np.flatnonzero(held_out if split == "val" else ~held_out)
    images = [Image.fromarray((data.images[i] * 15.9).astype(np.uint8)) for i in chosen]
    return Labelled(images, [int(data.target[i]) for i in chosen], [str(n) for n in range(10)], f"digits, {split}")


class Batches:
    """Runs a function over batches of a subject's images, the batch halved where memory runs out, for good."""

    def __init__(self, subject: Subject, batch: int) -> None:
        self.subject, self.batch, self.given = subject, batch, batch

    def map(self, function, images: Sequence[Path | Image.Image]) -> Tensor:
        """Return the results of `function` on [B, C, H, W], one after the other along the first axis, on the CPU."""
        found: list[Tensor] = []
        done = 0
        while done < len(images):
            part = images[done : done + self.batch]
            x = torch.stack([self.subject.opened.read(image) for image in part]).to(self.subject.device)
            try:
                with torch.inference_mode():
                    found.append(function(x).float().cpu().clone())
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if self.batch == 1:
                    raise OutOfMemory(
                        f"out of memory for one image of {tuple(x.shape)}; give a smaller --size"
                    ) from None
                self.batch //= 2
                continue
            done += len(part)
        return torch.cat(found)

    def said(self) -> str:
        """Return what became of the batch in words; empty where it stayed as given."""
        return "" if self.batch == self.given else f"batch halved from {self.given} to {self.batch}: out of memory"


def top1(subject: Subject, data: Labelled, batch: int) -> tuple[float, str]:
    """Return the top-1 accuracy of a classifier in percent, and what became of the batch."""
    batches = Batches(subject, batch)
    answers = batches.map(lambda x: subject.network(x).argmax(1), data.images)
    right = (answers.long() == torch.tensor(data.labels)).double().mean()
    return 100 * float(right), batches.said()
