"""Loaders: images of a source, augmented, in batches, and the check that both splits mean the same classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose
from yacs.config import CfgNode

from classification.rng import borrowed_seed
from classification.sampler import SeededBatches
from classification.sources import ImageSource, open_source
from classification.stopping import leave_signals_to_the_main_process
from classification.transforms import needs_colour, split_transform, train_transform
from classification.world import World
from vmamba.errors import UserError
from vmamba.models.from_config import input_channels
from vmamba.preprocess import IMAGE_ERRORS, evaluation_transform, image_mode


@dataclass
class BadImage:
    """An image that could not be read, on its way from a worker to the main process."""

    name: str
    reason: str


class Images(Dataset):
    """Batches of transformed images; asked with ``[seed, index, ...]``, answers (images [B, C, H, W], labels [B]).

    What works on tensors (normalisation, erasing) is done on the whole batch at once, which small images need.
    """

    def __init__(self, source: ImageSource, transform: Compose, mode: str) -> None:
        self.source, self.mode = source, mode
        self.image_steps, self.tensor_steps = split_transform(transform)

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitems__(self, batch: list[int]) -> tuple[torch.Tensor, torch.Tensor] | BadImage:
        """Return one batch, or the first image of it that cannot be read."""
        seed, *indices = batch
        arrays = []
        with borrowed_seed(seed):
            for index in indices:
                try:
                    image = self.source.load(index).convert(self.mode)
                except IMAGE_ERRORS as error:
                    return BadImage(self.source.name(index), getattr(error, "strerror", None) or str(error))
                arrays.append(np.asarray(self.image_steps(image)))
            images = self.tensor_steps(_as_tensor(np.stack(arrays)))
        return images, torch.tensor([self.source.labels[index] for index in indices])


def _as_tensor(arrays: np.ndarray) -> torch.Tensor:
    """Return uint8 images [B, H, W] or [B, H, W, C] as float32 [B, C, H, W] from 0 to 1."""
    images = torch.from_numpy(arrays)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images.contiguous().to(torch.float32).div_(255)


def _as_is(batch):
    return batch


class Batches:
    """A loader that yields (images, labels) and turns an unreadable image into a one-line error.

    Once `enough` answers true, on this process alone, there is no further batch.
    """

    def __init__(self, dataset: Images, batches: SeededBatches, config: CfgNode, keep_workers: bool) -> None:
        workers = config.DATA.NUM_WORKERS
        self.dataset, self.sampler = dataset, batches
        self.enough: Callable[[], bool] = lambda: False
        self._loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=_as_is,
            num_workers=workers,
            pin_memory=config.DATA.PIN_MEMORY and batches.world.device.type == "cuda",
            persistent_workers=keep_workers and workers > 0,
            worker_init_fn=leave_signals_to_the_main_process,
            # its own generator: starting an epoch must not draw from the global one
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self._loader:
            if self.enough():
                break
            if isinstance(batch, BadImage):
                raise UserError(f"cannot read the image {batch.name}: {batch.reason}; repair or remove it")
            yield batch

    @property
    def images(self) -> int:
        """Number of images over all processes."""
        return len(self.dataset)


@dataclass
class Data:
    """What a run reads: `train` is None when only evaluation is asked for."""

    train: Batches | None
    held_out: Batches
    classes: list[str]


def build_data(config: CfgNode, stated: set[str], world: World) -> Data:
    """Return the loaders, and set ``MODEL.NUM_CLASSES`` to the number of classes found.

    Unless ``DATA.NUM_WORKERS`` is stated, there are no more workers than cores; the batches do not depend on it.

    Raises `UserError` when the two splits have different classes, when a stated number of classes is another one, or
    when there are too few images for one batch.
    """
    if "DATA.NUM_WORKERS" not in stated:
        config.DATA.NUM_WORKERS = min(config.DATA.NUM_WORKERS, _cores())
    held_out = open_source(config, train=False)
    train = None if config.EVAL_MODE else open_source(config, train=True)
    if train is not None:
        _check_same_classes(config, train.classes, held_out.classes)
    _settle_class_count(config, stated, held_out.classes)
    return Data(
        train=_train_batches(config, train, world) if train is not None else None,
        held_out=_held_out_batches(config, held_out, world),
        classes=held_out.classes,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _train_batches(config: CfgNode, source: ImageSource, world: World) -> Batches:
    mode = "RGB" if needs_colour(config) else image_mode(input_channels(config))
    images = Images(source, train_transform(config), mode)
    batches = SeededBatches(len(images), config.DATA.BATCH_SIZE, world, config.SEED, train=True)
    if len(batches) == 0:
        raise UserError(
            f"{len(images)} training images are too few for a batch of {config.DATA.BATCH_SIZE} "
            f"on each of {world.size} processes; lower --batch-size"
        )
    return Batches(images, batches, config, keep_workers=True)


def _held_out_batches(config: CfgNode, source: ImageSource, world: World) -> Batches:
    images = Images(source, evaluation_transform(config), image_mode(input_channels(config)))
    batches = SeededBatches(len(images), config.DATA.BATCH_SIZE, world, config.SEED, train=False)
    return Batches(images, batches, config, keep_workers=False)


def _check_same_classes(config: CfgNode, train: list[str], held_out: list[str]) -> None:
    if train != held_out:
        only_train, only_val = (sorted(set(a) - set(b)) for a, b in ((train, held_out), (held_out, train)))
        raise UserError(
            f"{config.DATA.DATA_PATH}: train has {len(train)} classes ({_some(train)}), val has {len(held_out)} "
            f"({_some(held_out)}); only in train: {_some(only_train) or 'none'}; "
            f"only in val: {_some(only_val) or 'none'}"
        )


def _settle_class_count(config: CfgNode, stated: set[str], classes: list[str]) -> None:
    wanted = config.MODEL.NUM_CLASSES
    if "MODEL.NUM_CLASSES" in stated and wanted != len(classes):
        raise UserError(
            f"MODEL.NUM_CLASSES is {wanted}, but {config.DATA.DATASET} has {len(classes)} classes ({_some(classes)}); "
            "leave the key out to take the number from the data"
        )
    config.MODEL.NUM_CLASSES = len(classes)


def _some(names: list[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f", ... {len(names) - limit} more" if len(names) > limit else "")
