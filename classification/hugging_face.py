"""Data sets of the Hugging Face hub, or on disk in one of its formats, through timm's readers."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from classification.decoding import UnreadableImage, decode, reason_of
from classification.names import printable
from classification.packages import require_package
from vmamba.errors import UserError


class HubImages:
    """A data set of the package `datasets`, read image by image; `key` and `target` are its columns."""

    def __init__(self, name: str, cache: str, split: str, key: str, target: str) -> None:
        require_package("datasets", f"DATA.DATASET hfds/{name}")
        from timm.data.readers.reader_hfds import ReaderHfds

        self._title = f"{name} {split}"
        try:
            self.reader = ReaderHfds(name=name, root=cache or None, split=split, input_key=key, target_key=target)
            column = self.reader.dataset[target]
            feature = self.reader.dataset.features[target]
        except Exception as error:  # the package raises errors of its own and of what it fetches with
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"cannot open DATA.DATASET hfds/{name}, split '{split}': {reason}; DATA.TRAIN_SPLIT, DATA.VAL_SPLIT, "
                "DATA.INPUT_KEY and DATA.TARGET_KEY name its splits and columns"
            ) from None
        self.labels = np.asarray(column[:], dtype=np.int64)
        count = int(self.labels.max(initial=-1)) + 1
        self.classes = list(getattr(feature, "names", None) or [str(number) for number in range(count)])

    def load(self, index: int) -> Image.Image:
        """Return image `index`, decoded and upright."""
        try:
            file, _ = self.reader[index]
        except Exception as error:  # as above
            raise UnreadableImage(reason_of(error)) from error
        with file:
            return decode(file)

    def name(self, index: int) -> str:
        """Return its number and the data set."""
        return printable(f"image {index} of {self._title}")


def open_hub(data: CfgNode, split: str) -> HubImages:
    """Return the images of ``DATA.DATASET`` hfds/NAME; ``DATA.DATA_PATH`` is the package's cache folder."""
    name = data.DATASET.partition("/")[2]
    return HubImages(name, data.DATA_PATH, split, data.INPUT_KEY or "image", data.TARGET_KEY or "label")


def stream_reader(name: str, **arguments: Any) -> Any:
    """Return timm's reader of a data set of the package `datasets` as a stream.

    Not by timm's factory, which writes names in small letters: those of other folders. timm 1.0.29 also passes an
    argument on that `datasets` knows no more since its version 4.
    """
    import datasets
    from timm.data.readers.reader_hfids import ReaderHfids

    load = datasets.load_dataset_builder
    datasets.load_dataset_builder = lambda *names, trust_remote_code=False, **more: load(*names, **more)
    try:
        return ReaderHfids(name, **arguments)
    finally:
        datasets.load_dataset_builder = load


def shards_of(reader: Any) -> int:
    """Return the number of files that the loaders of a `stream_reader` share out among themselves."""
    return int(reader.builder.as_streaming_dataset(split=reader.split).num_shards)
