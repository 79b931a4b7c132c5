"""Small data sets in memory: scikit-learn's digits, Fashion-MNIST, and the idx files of the MNIST family."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vmamba.errors import UserError

FASHION_CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass
class ArraySource:
    """Images in memory: uint8 [N, H, W]."""

    images: np.ndarray
    labels: Sequence[int]
    classes: list[str]
    title: str

    def load(self, index: int) -> Image.Image:
        """Return image `index` in gray."""
        return Image.fromarray(self.images[index])

    def name(self, index: int) -> str:
        """Return its number and the data set."""
        return f"image {index} of {self.title}"


def open_digits(train: bool) -> ArraySource:
    """Return scikit-learn's 1,797 handwritten digits, 8x8; a stratified fifth is held out, always the same one."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(np.arange(len(images)), test_size=0.2, random_state=0, stratify=digits.target)
    chosen = np.sort(parts[0 if train else 1])
    return ArraySource(images[chosen], digits.target[chosen].tolist(), [str(n) for n in digits.target_names], "digits")


def open_fashion_mnist(path: str, train: bool) -> ArraySource:
    """Return the 70,000 product photos, 28x28, of the idx.gz files that ``make data`` fetches."""
    root = Path(path or "data/fashion_mnist")
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; fetch Fashion-MNIST with: make data")
    split = "train" if train else "t10k"
    images = read_idx(root / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(root / f"{split}-labels-idx1-ubyte.gz")
    return ArraySource(images, labels.tolist(), list(FASHION_CLASSES), "fashion_mnist")


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of an idx file, gzipped or plain (the format of MNIST)."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; fetch Fashion-MNIST with: make data") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}; delete it and fetch it again with: make data") from None
    rank = data[3] if data[:3] == b"\x00\x00\x08" and len(data) >= 4 + 4 * data[3] else 0
    shape = np.frombuffer(data, ">u4", rank, 4).astype(int)
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if rank == 0 or body.size != int(np.prod(shape)):
        raise UserError(f"{path} is no complete idx file; delete it and fetch it again with: make data")
    return body.reshape(shape)
