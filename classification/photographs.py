"""An image folder of real photographs, made of those that scikit-image and scikit-learn bring along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

# ImageNet's average image has about this area, and its files are JPEG.
AREA, QUALITY = 500 * 375, 90


def photographs() -> dict[str, Image.Image]:
    """Return the bundled photographs in colour, by name, each scaled to the area of ImageNet's average image."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    flower = dict(zip(("china", "flower"), load_sample_images().images))
    arrays = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")} | flower
    return {name: _scaled(Image.fromarray(np.asarray(array)).convert("RGB")) for name, array in arrays.items()}


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


def _scaled(picture: Image.Image) -> Image.Image:
    factor = (AREA / (picture.width * picture.height)) ** 0.5
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC)
