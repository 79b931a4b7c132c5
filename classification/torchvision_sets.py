"""Classification data sets of torchvision, in its own layout on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from classification.decoding import UnreadableImage, reason_of
from classification.world import World
from vmamba.errors import UserError

_TRAIN = {"train": True}, {"train": False}
_TEST = {"split": "train"}, {"split": "test"}
# name -> torchvision's class, its arguments for training and for evaluation
SETS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mnist": ("MNIST", *_TRAIN),
    "kmnist": ("KMNIST", *_TRAIN),
    "usps": ("USPS", *_TRAIN),
    "cifar10": ("CIFAR10", *_TRAIN),
    "cifar100": ("CIFAR100", *_TRAIN),
    "stl10": ("STL10", *_TEST),
    "svhn": ("SVHN", *_TEST),
    "food101": ("Food101", *_TEST),
    "flowers102": ("Flowers102", *_TEST),
    "stanford_cars": ("StanfordCars", *_TEST),
    "gtsrb": ("GTSRB", *_TEST),
    "dtd": ("DTD", *_TEST),
    "oxford_pets": ("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
    "aircraft": ("FGVCAircraft", {"split": "trainval"}, {"split": "test"}),
    "imagenette": ("Imagenette", {"split": "train"}, {"split": "val"}),
    "places365": ("Places365", {"split": "train-standard", "small": True}, {"split": "val", "small": True}),
}


class TorchvisionSource:
    """A classification data set of torchvision."""

    def __init__(self, class_name: str, root: str, **arguments) -> None:
        from torchvision import datasets

        try:
            self.dataset = getattr(datasets, class_name)(root, **arguments)
        except (RuntimeError, OSError, ValueError) as error:
            step = "download it first, or set DATA.DOWNLOAD True" if not arguments.get("download") else "try again"
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise UserError(f"torchvision found no {class_name} in '{root}': {reason}; {step}") from None
        self.labels = np.array([int(label) for label in _labels(self.dataset)], dtype=np.int64)
        self.classes = [_name(c) for c in getattr(self.dataset, "classes", range(int(self.labels.max()) + 1))]

    def load(self, index: int) -> Image.Image:
        """Return image `index`."""
        try:
            return self.dataset[index][0]
        except Exception as error:  # a damaged file makes the decoders raise nearly anything
            raise UnreadableImage(reason_of(error)) from error

    def name(self, index: int) -> str:
        """Return its number and the data set."""
        return f"image {index} of {type(self.dataset).__name__}"


def open_torchvision(name: str, data: CfgNode, train: bool, world: World) -> TorchvisionSource:
    """Return the data set `name` below ``DATA_PATH``; with ``DATA.DOWNLOAD`` the first process fetches it."""
    class_name, for_training, for_evaluation = SETS[name]
    arguments = for_training if train else for_evaluation
    root = data.DATA_PATH or "data"
    if data.DOWNLOAD:
        world.from_first(lambda: _download(class_name, root, arguments))
    return TorchvisionSource(class_name, root, **arguments)


def _download(class_name: str, root: str, arguments: dict[str, Any]) -> None:
    Path(root).mkdir(parents=True, exist_ok=True)
    TorchvisionSource(class_name, root, download=True, **arguments)


def _labels(dataset: Any) -> Any:
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            return getattr(dataset, attribute)
    return [sample[1] for sample in dataset._samples]


def _name(found: Any) -> str:
    """Return one class name: some data sets give several for a class."""
    return str(found[0] if isinstance(found, tuple | list) else found)
