"""An image folder of real photographs, made of those that scikit-image and scikit-learn bring along."""

from __future__ import annotations

from pathlib import Path

from vmamba.photographs import photographs

QUALITY = 90  # ImageNet's files are JPEG


def write_photographs(root: Path, train: int, held_out: int) -> int:
    """Write ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg`` of so many files, and return the mean size of one in bytes.

    Each photograph is a class; its files are alike.
    """
    sizes = []
    pictures = list(photographs().items())
    for split, count in (("train", train), ("val", held_out)):
        for number in range(count):
            name, picture = pictures[number % len(pictures)]
            path = root / split / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=QUALITY)
            sizes.append(path.stat().st_size)
    return sum(sizes) // len(sizes)
