"""Data sets that are read in their own order: remote WebDataset shards, Hugging Face streaming, TensorFlow datasets.

timm's readers do the reading. What they cannot give: an evaluation that counts every image once on several processes
(shards are dealt out whole), and a rule for bad images (they log and skip, or stop). A run that resumes inside an epoch
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
from classification.packages import require_package
from classification.stopping import leave_signals_to_the_main_process
from classification.world import World
from vmamba.errors import UserError

_PACKAGES = {"wds/": "webdataset", "hfids/": "datasets", "tfds/": "tensorflow_datasets"}
STREAMS = tuple(_PACKAGES)


class StreamImages:
    """timm's data set of a stream; its length is the number of images over all processes."""

    def __init__(self, config: CfgNode, transform: Compose, mode: str, train: bool) -> None:
        self.train, self.title = train, config.DATA.DATASET
        self.stream = _open(config, mode, train)
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
        self._workers = max(1, config.DATA.NUM_WORKERS)
        self._stream.set_loader_cfg(num_workers=self._workers)
        batches = len(self._stream) / config.DATA.BATCH_SIZE
        self.position = StreamPosition(int(batches) if images.train else math.ceil(batches), images.train)
        if images.train and len(self.position) == 0:
            raise UserError(f"{config.DATA.DATASET} has too few images for a batch of {config.DATA.BATCH_SIZE}")

    def __iter__(self) -> Iterator[Loaded]:
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


def _open(config: CfgNode, mode: str, train: bool) -> Any:
    from timm.data import create_dataset

    data = config.DATA
    package = next(package for prefix, package in _PACKAGES.items() if data.DATASET.startswith(prefix))
    require_package(package, f"DATA.DATASET {data.DATASET}")
    split, _, count = (data.TRAIN_SPLIT if train else data.VAL_SPLIT).partition("|")
    try:
        return create_dataset(
            data.DATASET,
            root=data.DATA_PATH or None,
            split=split,
            is_training=train,
            batch_size=data.BATCH_SIZE,
            num_samples=int(count) if count else None,
            seed=config.SEED,
            input_img_mode=mode,
            input_key=data.INPUT_KEY or None,
            target_key=data.TARGET_KEY or None,
        )
    except Exception as error:  # the packages raise errors of their own and of what they fetch with
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot open DATA.DATASET {data.DATASET}, split '{split}': {reason}; DATA.TRAIN_SPLIT and DATA.VAL_SPLIT "
            "name the splits or shards, SPLIT|NUMBER with the number of their images"
        ) from None
