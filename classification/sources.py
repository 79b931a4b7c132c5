"""Where images come from: a table of data sets, each a list of PIL images with labels and class names."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from vmamba.errors import UserError, closest
from vmamba.preprocess import read_image

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class ImageSource(Protocol):
    """Labelled images of one split."""

    classes: list[str]

    @property
    def labels(self) -> Sequence[int]:
        """The class number of each image."""

    def load(self, index: int) -> Image.Image:
        """Return one image; raises one of `vmamba.preprocess.IMAGE_ERRORS` when it cannot be read."""

    def name(self, index: int) -> str:
        """Return what an error message calls the image."""


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


class FolderSource:
    """Images in one folder per class."""

    def __init__(self, root: Path) -> None:
        self.classes = sorted(entry.name for entry in _entries(root) if entry.is_dir())
        if not self.classes:
            raise UserError(f"{root} holds no class folders; images are expected as {root}/CLASS/IMAGE.jpg")
        self.paths: list[Path] = []
        self.labels: list[int] = []
        for label, name in enumerate(self.classes):
            found = sorted(path for path in _files_below(root / name) if path.suffix.lower() in _IMAGE_SUFFIXES)
            if not found:
                kinds = ", ".join(_IMAGE_SUFFIXES)
                raise UserError(f"{root / name} holds no images ({kinds}); add some or remove the folder")
            self.paths += found
            self.labels += [label] * len(found)

    def load(self, index: int) -> Image.Image:
        """Return the image at path `index`, decoded and upright."""
        return read_image(self.paths[index])

    def name(self, index: int) -> str:
        """Return its path."""
        return str(self.paths[index])


class TorchvisionSource:
    """A classification data set of torchvision that is already on disk."""

    def __init__(self, class_name: str, root: str, **arguments) -> None:
        from torchvision import datasets

        try:
            self.dataset = getattr(datasets, class_name)(root, **arguments)
        except RuntimeError as error:
            raise UserError(f"torchvision found no {class_name} in '{root}': {error}; download it first") from None
        labels = self.dataset.targets if hasattr(self.dataset, "targets") else self.dataset.labels
        self.labels = [int(label) for label in labels]
        self.classes = [str(c) for c in getattr(self.dataset, "classes", range(max(self.labels) + 1))]

    def load(self, index: int) -> Image.Image:
        """Return image `index`."""
        return self.dataset[index][0]

    def name(self, index: int) -> str:
        """Return its number and the data set."""
        return f"image {index} of {type(self.dataset).__name__}"


def _image_folder(path: str, train: bool) -> ImageSource:
    if not path:
        raise UserError("DATA.DATA_PATH is empty; --data-path names the folder that holds train/ and val/")
    root = Path(path)
    _require_folder(root)
    split = root / ("train" if train else "val")
    _require_folder(split)
    return FolderSource(split)


def _digits(path: str, train: bool) -> ImageSource:
    """scikit-learn's 1,797 handwritten digits, 8x8; a stratified fifth is held out, always the same one."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(np.arange(len(images)), test_size=0.2, random_state=0, stratify=digits.target)
    chosen = np.sort(parts[0 if train else 1])
    return ArraySource(images[chosen], digits.target[chosen].tolist(), [str(n) for n in digits.target_names], "digits")


FASHION_CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def _fashion_mnist(path: str, train: bool) -> ImageSource:
    """70,000 product photos, 28x28, from the idx.gz files that ``make data`` fetches."""
    root = Path(path or "data/fashion_mnist")
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; fetch Fashion-MNIST with: make data")
    split = "train" if train else "t10k"
    images = read_idx(root / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(root / f"{split}-labels-idx1-ubyte.gz")
    return ArraySource(images, labels.tolist(), list(FASHION_CLASSES), "fashion_mnist")


def _torchvision(class_name: str) -> Callable[[str, bool], ImageSource]:
    return lambda path, train: TorchvisionSource(class_name, path or "data", train=train)


def _torchvision_by_split(class_name: str, held_out: str = "test") -> Callable[[str, bool], ImageSource]:
    return lambda path, train: TorchvisionSource(class_name, path or "data", split="train" if train else held_out)


DATASETS: dict[str, Callable[[str, bool], ImageSource]] = {
    "imagenet": _image_folder,
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "mnist": _torchvision("MNIST"),
    "kmnist": _torchvision("KMNIST"),
    "cifar10": _torchvision("CIFAR10"),
    "cifar100": _torchvision("CIFAR100"),
    "stl10": _torchvision_by_split("STL10"),
    "svhn": _torchvision_by_split("SVHN"),
}


def open_source(config: CfgNode, train: bool) -> ImageSource:
    """Return the training or the held-out images that ``DATA.DATASET`` and ``DATA.DATA_PATH`` name."""
    check_dataset(config.DATA.DATASET)
    return DATASETS[config.DATA.DATASET](config.DATA.DATA_PATH, train)


def check_dataset(name: str) -> None:
    """Raise `UserError` for a name that the table does not have."""
    if name == "imagenet22K":
        raise UserError("not supported yet: DATA.DATASET imagenet22K")
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise UserError(f"DATA.DATASET '{name}' is unknown; it is one of {known}.{closest(name, DATASETS)}")


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of an idx file, gzipped or plain (the format of MNIST)."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; fetch Fashion-MNIST with: make data") from None
    except (OSError, EOFError) as error:
        raise UserError(f"{path} is damaged: {error}; delete it and fetch it again with: make data") from None
    rank = data[3] if len(data) > 4 and data[:3] == b"\x00\x00\x08" else 0
    shape = np.frombuffer(data, ">u4", rank, 4).astype(int)
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if rank == 0 or body.size != int(np.prod(shape)):
        raise UserError(f"{path} is no complete idx file; delete it and fetch it again with: make data")
    return body.reshape(shape)


def _require_folder(path: Path) -> None:
    if path.is_dir():
        return
    if path.exists():
        raise UserError(f"{path} is a file, not a folder of images")
    siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    raise UserError(f"there is no folder {path}.{closest(path.name, siblings)}")


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except PermissionError:
        raise UserError(f"the folder {folder} is not readable; check its permissions") from None


def _files_below(folder: Path) -> list[Path]:
    files: list[Path] = []
    for entry in _entries(folder):
        if entry.is_dir():
            files += _files_below(Path(entry.path))
        else:
            files.append(Path(entry.path))
    return files
