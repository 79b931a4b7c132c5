"""Data sets that are read in their own order: remote WebDataset shards, Hugging Face streaming, TensorFlow datasets.

timm's readers do the reading. What they cannot give: a rule for bad images (they log and skip, or stop), and, by
themselves, an evaluation that counts every image once on several processes. A run that resumes inside an epoch
reads that epoch again up to its place; the images are the same ones as long as the workers and processes are as many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import Compose
from yacs.config import CfgNode

from classification.bad_samples import Loaded
from classification.hugging_face import shards_of, stream_reader
from classification.packages import require_package
from classification.stopping import leave_signals_to_the_main_process
from classification.world import World
from vmamba.errors import UserError

_PACKAGES = {"wds/": "webdataset", "hfids/": "datasets", "tfds/": "tensorflow_datasets"}
STREAMS = tuple(_PACKAGES)


class StreamImages:
    """timm's data set of a stream, of `shards` files; its length is the number of images over all processes."""

    def __init__(self, config: CfgNode, transform: Compose, mode: str, train: bool) -> None:
        self.train, self.title = train, config.DATA.DATASET
        self.stream, self.shards = _open(config, mode, train)
        self.stream.transform = transform

    def __len__(self) -> int:
        return int(self.stream.reader.num_samples)


class StreamPosition:
    """Where a stream is: the epoch, and the batch at which it is entered; its length is that of a whole epoch."""

    def __init__(self, batches: int, train: bool) -> None:
        self.train, self._batches = train, batches
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, entered at batch number `start`."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self._batches


class StreamLoader:
    """Yields the batches of a stream; in training as many on every process."""

    def __init__(self, images: StreamImages, config: CfgNode, world: World) -> None:
        self._stream, self._config, self._world = images.stream, config, world
        self._workers = loaders_of(images, max(1, config.DATA.NUM_WORKERS), world)
        self._has_part = images.train or world.size == 1 or take_own_part(images, world)
        self._stream.set_loader_cfg(num_workers=self._workers)
        if images.train:
            batches = len(self._stream) // config.DATA.BATCH_SIZE
        else:
            batches = math.ceil(len(images) / world.size / config.DATA.BATCH_SIZE)
        self.position = StreamPosition(batches, images.train)
        if images.train and len(self.position) == 0:
            raise UserError(f"{config.DATA.DATASET} has too few images for a batch of {config.DATA.BATCH_SIZE}")

    def __iter__(self) -> Iterator[Loaded]:
        if not self._has_part:
            return
        position = self.position
        self._stream.set_epoch(position.epoch)
        key = [self._config.SEED, position.epoch, self._world.rank, int(position.train)]
        loader: DataLoader = DataLoader(
            self._stream,
            batch_size=self._config.DATA.BATCH_SIZE,
            drop_last=position.train,
            num_workers=self._workers,
            pin_memory=self._config.DATA.PIN_MEMORY and self._world.device.type == "cuda",
            worker_init_fn=leave_signals_to_the_main_process,
            # seeds the workers, whose random states the augmentation draws from
            generator=torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0])),
        )
        for number, (images, labels) in enumerate(loader):
            if position.train and number == len(position):
                return
            if number >= position.start:
                yield Loaded(images, labels, [])


def loaders_of(images: StreamImages, wanted: int, world: World) -> int:
    """Return how many loaders each process gets: of those `wanted`, as many as there are shards for.

    A loader without a shard would wait for images without end. Raises `UserError` where a process would have none.
    """
    if images.shards is None:
        return wanted
    whole = images.title.startswith("hfids/") and images.shards % world.size > 0  # each process reads every shard
    most = images.shards if whole else images.shards // world.size
    if images.train and most == 0:
        raise UserError(
            f"{images.title} has {images.shards} shards for {world.size} processes; each needs one of its own: use "
            "fewer processes, or write more and smaller shards"
        )
    return min(wanted, max(most, 1))


def take_own_part(images: StreamImages, world: World) -> bool:
    """Leave this process its own shards of an evaluation, each of their images once; False where it has none.

    By itself timm's reader of WebDataset takes as many images on each process: some again where the shards of one hold
    fewer, and not all where they hold more; with no shard it waits without end.
    """
    if not images.title.startswith("wds/"):
        return True
    reader: Any = images.stream.reader
    shards = reader.split_info.filenames[world.rank :: world.size]
    reader.split_info.filenames, reader.dist_rank, reader.dist_num_replicas = shards, 0, 1
    return len(shards) > 0


def _open(config: CfgNode, mode: str, train: bool) -> tuple[Any, int | None]:
    """Return timm's data set, and the number of its shards where loaders take whole ones."""
    from timm.data import IterableImageDataset, create_dataset

    data = config.DATA
    prefix, package = next(item for item in _PACKAGES.items() if data.DATASET.startswith(item[0]))
    require_package(package, f"DATA.DATASET {data.DATASET}")
    split, _, count = (data.TRAIN_SPLIT if train else data.VAL_SPLIT).partition("|")
    arguments: dict[str, Any] = {
        "root": data.DATA_PATH or None,
        "split": split,
        "is_training": train,
        "batch_size": data.BATCH_SIZE,
        "num_samples": int(count) if count else None,
        "seed": config.SEED,
        "input_img_mode": mode,
        "input_key": data.INPUT_KEY or None,
        "target_key": data.TARGET_KEY or None,
    }
    try:
        if prefix == "hfids/":
            stated = {key: value for key, value in arguments.items() if value is not None}
            reader = stream_reader(data.DATASET.removeprefix(prefix), **stated)
            return IterableImageDataset(None, reader=reader), shards_of(reader)
        stream = create_dataset(data.DATASET, **arguments)
        return stream, len(stream.reader.split_info.filenames) if prefix == "wds/" else None
    except Exception as error:  # the packages raise errors of their own and of what they fetch with
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot open DATA.DATASET {data.DATASET}, split '{split}': {reason}; DATA.TRAIN_SPLIT and DATA.VAL_SPLIT "
            "name the splits or shards, SPLIT|NUMBER with the number of their images"
        ) from None
