"""Small image folders whose images say which one they are: image number n is of gray value 8 n."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from classification.config import load_config
from classification.data import Batches, Data, build_data
from classification.world import World

STEP = 8


def marked(number: int, size: int = 12) -> Image.Image:
    """Return image `number`, of one colour."""
    return Image.new("RGB", (size, size), (STEP * number,) * 3)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_marked(root: Path, counts: dict[str, int], splits: tuple[str, ...] = ("train", "val")) -> Path:
    """Write so many marked images to each class folder of both splits; numbers go on over the classes."""
    for split in splits:
        number = 0
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for _ in range(count):
                (root / split / name / f"{number:02d}.png").write_bytes(encoded(marked(number)))
                number += 1
    return root


def plain_data(root: Path, *opts, world: World | None = None, **more) -> Data:
    """Return the loaders of `root` without augmentation, for images of 8 x 8, batches of 4, and the given keys."""
    stated = ["DATA.DATA_PATH", root, "DATA.BATCH_SIZE", 4, "DATA.IMG_SIZE", 8, "DATA.NUM_WORKERS", 0]
    plain = ["AUG.ENABLE", False, "DATA.MEAN", [0.0] * 3, "DATA.STD", [1.0] * 3]
    config, keys = load_config(opts=[str(o) for o in (*stated, *plain, *opts)])
    return build_data(config, keys, world or World(), **more)


def numbers(batches: Batches, epoch: int = 0) -> list[list[int]]:
    """Return the numbers of the images in each batch."""
    batches.sampler.set_epoch(epoch)
    return [(images[:, 0, 0, 0] * 255 / STEP).round().to(torch.int64).tolist() for images, _ in batches]


def noise(height: int, width: int, dtype: type = np.uint8, high: int = 256) -> np.ndarray:
    """Return random pixels, the same each time."""
    return np.random.default_rng(0).integers(0, high, (height, width), dtype=dtype)
