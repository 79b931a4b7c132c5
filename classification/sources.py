"""Where images come from: the table of data sets, each a list of PIL images with labels and class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from classification.archives import SourceFailed
from classification.arrays import open_digits, open_fashion_mnist
from classification.files import FolderSource, data_root, require_folder
from classification.hugging_face import open_hub
from classification.jump_cp import NAME as CELLS
from classification.jump_cp import is_cells, open_jump_cp
from classification.lists import open_list
from classification.streams import STREAMS
from classification.tar_images import open_shards, open_tar
from classification.torchvision_sets import SETS, open_torchvision
from classification.world import World
from classification.zip_images import open_zip
from vmamba.errors import UserError, closest


class ImageSource(Protocol):
    """Labelled images of one split, in any order."""

    classes: list[str]

    @property
    def labels(self) -> Sequence[int] | np.ndarray:
        """The class number of each image."""

    def load(self, index: int) -> Image.Image | np.ndarray:
        """Return one image, an array [H, W, C] where Pillow has no mode for its channels.

        Raises one of `vmamba.preprocess.IMAGE_ERRORS` when it cannot be read.
        """

    def name(self, index: int) -> str:
        """Return what an error message calls the image."""


# data set -> what opens its training (True) or held-out images, given the node DATA
DATASETS: dict[str, Callable[[CfgNode, bool, World], ImageSource]] = {
    "imagenet": lambda data, train, world: _image_folder(data, train, world),
    "imagenet22K": lambda data, train, world: open_list(data, split_name(data, train)),
    "list": lambda data, train, world: open_list(data, split_name(data, train)),
    "tar": lambda data, train, world: open_tar(data, split_name(data, train)),
    "shards": lambda data, train, world: open_shards(data, split_name(data, train)),
    "digits": lambda data, train, world: open_digits(train),
    "fashion_mnist": lambda data, train, world: open_fashion_mnist(data.DATA_PATH, train),
}
for _name in SETS:
    DATASETS[_name] = lambda data, train, world: open_torchvision(data.DATASET, data, train, world)

# What a name may begin with; the rest of it is the name that the package `datasets`, `webdataset` or TensorFlow has.
HUB = "hfds/"


def open_source(config: CfgNode, train: bool, world: World | None = None) -> ImageSource:
    """Return the training or the held-out images that ``DATA.DATASET`` and ``DATA.DATA_PATH`` name."""
    data = config.DATA
    check_dataset(data.DATASET)
    if data.DATASET.startswith(HUB):
        return open_hub(data, split_name(data, train))
    if is_cells(data.DATASET):
        return open_jump_cp(config, split_name(data, train))
    try:
        return DATASETS[data.DATASET](data, train, world or World())
    except SourceFailed as error:
        raise UserError(str(error)) from None


def split_name(data: CfgNode, train: bool) -> str:
    """Return the folder, archive or list that holds the training or the held-out images."""
    return data.TRAIN_SPLIT if train else data.VAL_SPLIT


def is_stream(name: str) -> bool:
    """True for a data set that is read in its own order alone; see `classification.streams`."""
    return name.startswith(STREAMS)


def check_dataset(name: str) -> None:
    """Raise `UserError` for a name that the table does not have."""
    if name not in DATASETS and not name.startswith((HUB, *STREAMS)) and not is_cells(name):
        known = ", ".join([*DATASETS, *(f"{prefix}NAME" for prefix in (HUB, *STREAMS)), CELLS, f"{CELLS}/PLATE"])
        raise UserError(f"DATA.DATASET '{name}' is unknown; it is one of {known}.{closest(name, [*DATASETS, CELLS])}")


def _image_folder(data: CfgNode, train: bool, world: World) -> ImageSource:
    split = split_name(data, train)
    if data.ZIP_MODE:
        return open_zip(data, split, world)
    root = require_folder(data_root(data.DATA_PATH))
    return FolderSource(require_folder(root / split))
