"""Loaders: images of a source, augmented, in batches, and the check that both splits mean the same classes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose
from yacs.config import CfgNode

from classification.archives import SourceFailed
from classification.bad_samples import BadImage, BadSamples, Loaded, refusal
from classification.cell_transforms import cell_transform
from classification.decoding import reason_of
from classification.jump_cp import is_cells
from classification.orders import training_batches
from classification.rng import borrowed_seed
from classification.sampler import SeededBatches
from classification.sources import ImageSource, is_stream, open_source
from classification.stopping import leave_signals_to_the_main_process
from classification.streams import StreamImages, StreamLoader, StreamPosition
from classification.transforms import reading_mode, split_transform, train_transform
from classification.world import World
from vmamba.errors import UserError
from vmamba.preprocess import IMAGE_ERRORS, evaluation_transform, in_mode

# Several processes compare their bad images after so many training batches, and at the end of every pass.
_AGREE_EVERY = 50


class Images(Dataset):
    """Batches of transformed images; asked with ``[seed, index, ...]``, answers with a `Loaded`.

    What works on tensors (normalisation, erasing) is done on the whole batch at once, which small images need. In
    training the next readable image of the source takes the place of one that cannot be read; in evaluation it is left
    out. Both follow from the files alone, so that every run sees the same batches.
    """

    def __init__(self, source: ImageSource, transform: Compose, mode: str, train: bool, most_bad: int) -> None:
        self.source, self.mode, self.train = source, mode, train
        self.image_steps, self.tensor_steps = split_transform(transform)
        self._tries = min(len(source.labels), max(most_bad, 1) + 1) if train else 1

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitems__(self, batch: list[int]) -> Loaded:
        """Return one batch: images [B, C, H, W] and labels [B]; both are None where no image could be read."""
        seed, *indices = batch
        arrays: list[np.ndarray] = []
        labels: list[int] = []
        bad: list[BadImage] = []
        with borrowed_seed(seed):
            try:
                for index in indices:
                    found = self._readable(index, bad)
                    if found is not None:
                        arrays.append(found[0])
                        labels.append(found[1])
                    elif self.train:
                        return Loaded(None, None, bad)
            except SourceFailed as error:
                return Loaded(None, None, bad, str(error))
            if not arrays:
                return Loaded(None, None, bad)
            return Loaded(self.tensor_steps(_as_tensor(np.stack(arrays))), torch.tensor(labels), bad)

    def _readable(self, index: int, bad: list[BadImage]) -> tuple[np.ndarray, int] | None:
        """Return (pixels, label) of image `index`, or of the first one after it that can be read within the tries."""
        for step in range(self._tries):
            number = (index + step) % len(self)
            try:
                image = self.source.load(number)
                image = image if isinstance(image, np.ndarray) else in_mode(image, self.mode)
            except PermissionError:
                name = self.source.name(number)
                raise SourceFailed(f"cannot read the image {name}: permission denied; check its permissions") from None
            except IMAGE_ERRORS as error:
                split = "train" if self.train else "val"
                bad.append(BadImage(split, self.source.name(number), reason_of(error), number))
                continue
            return np.asarray(self.image_steps(image)), int(self.source.labels[number])
        return None


def _as_tensor(arrays: np.ndarray) -> torch.Tensor:
    """Return uint8 images [B, H, W] or [B, H, W, C] as float32 [B, C, H, W] from 0 to 1."""
    images = torch.from_numpy(arrays)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images.contiguous().to(torch.float32).div_(255)


def _as_is(batch):
    return batch


class Batches:
    """Yields the (images, labels) of a loader and tells `bad` what could not be read.

    `sampler` chooses the epoch; its length is the number of batches. Once `enough` answers true, on this process alone,
    there is no further batch.
    """

    def __init__(
        self,
        dataset: Images | StreamImages,
        sampler: SeededBatches | StreamPosition,
        loader: Iterable[Loaded],
        bad: BadSamples,
    ) -> None:
        self.dataset, self.sampler, self.bad = dataset, sampler, bad
        self._loader = loader
        self._left_out: set[int] = set()
        self.enough: Callable[[], bool] = lambda: False

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        train = self.sampler.train
        for number, loaded in enumerate(self._loader, start=1):
            if self.enough():
                break
            self.bad.add(loaded.bad)
            self._left_out.update(image.index for image in loaded.bad)
            if loaded.fatal:
                raise UserError(loaded.fatal)
            if loaded.images is None or loaded.labels is None:
                if train:  # on this process alone, which has no batch; torchrun ends the others
                    raise UserError(refusal(loaded.bad))
                continue
            if train and number % _AGREE_EVERY == 0:
                self.bad.agree()
            yield loaded.images, loaded.labels
        self.bad.agree()

    @property
    def images(self) -> int:
        """Number of images over all processes."""
        return len(self.dataset)

    def name(self, position: int) -> str:
        """Return the name of the image that an evaluation on this process has yielded at `position`."""
        if isinstance(self.dataset, StreamImages):
            return f"image {position} of {self.dataset.title}"
        assert isinstance(self.sampler, SeededBatches)
        order = [index for batch in self.sampler for index in batch[1:] if index not in self._left_out]
        return self.dataset.source.name(order[position])


@dataclass
class Data:
    """What a run reads: `train` is None when only evaluation is asked for."""

    train: Batches | None
    held_out: Batches
    classes: list[str]


def build_data(
    config: CfgNode,
    stated: set[str],
    world: World,
    folder: Path | None = None,
    logger: logging.Logger | None = None,
) -> Data:
    """Return the loaders, and set ``MODEL.NUM_CLASSES`` to the number of classes found.

    Unless ``DATA.NUM_WORKERS`` is stated, there are no more workers than cores; the batches do not depend on it. Images
    that cannot be read are listed in `folder` and warned of by `logger`, as is what a source leaves out.

    Raises `UserError` when the two splits have different classes, when a stated number of classes is another one, or
    when there are too few images for one batch.
    """
    if "DATA.NUM_WORKERS" not in stated:
        config.DATA.NUM_WORKERS = min(config.DATA.NUM_WORKERS, _cores())
    bad = BadSamples(config.DATA.MAX_BAD, world, folder, logger)
    if is_stream(config.DATA.DATASET):
        return _stream_data(config, stated, world, bad)
    held_out = open_source(config, train=False, world=world)
    train = None if config.EVAL_MODE else open_source(config, train=True, world=world)
    if train is not None:
        _check_same_classes(config, train.classes, held_out.classes)
    for note in [note for source in (train, held_out) for note in getattr(source, "notes", ())]:
        if logger is not None and world.first:
            logger.warning(note)
    _settle_class_count(config, stated, held_out.classes)
    return Data(
        train=_train_batches(config, train, world, bad) if train is not None else None,
        held_out=_held_out_batches(config, held_out, world, bad),
        classes=held_out.classes,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _images(config: CfgNode, source: ImageSource, train: bool) -> Images:
    if is_cells(config.DATA.DATASET):
        return Images(source, cell_transform(config, train), "", train, config.DATA.MAX_BAD)
    transform = train_transform(config) if train else evaluation_transform(config)
    return Images(source, transform, reading_mode(config, train), train, config.DATA.MAX_BAD)


def _train_batches(config: CfgNode, source: ImageSource, world: World, bad: BadSamples) -> Batches:
    images = _images(config, source, train=True)
    batches = training_batches(config, len(images), world)
    if len(batches) == 0:
        raise UserError(
            f"{len(images)} training images are too few for a batch of {config.DATA.BATCH_SIZE} "
            f"on each of {world.size} processes; lower --batch-size"
        )
    return Batches(images, batches, _loader(images, batches, config, keep_workers=True), bad)


def _held_out_batches(config: CfgNode, source: ImageSource, world: World, bad: BadSamples) -> Batches:
    images = _images(config, source, train=False)
    batches = SeededBatches(len(images), config.DATA.BATCH_SIZE, world, config.SEED, train=False)
    return Batches(images, batches, _loader(images, batches, config, keep_workers=False), bad)


def _loader(images: Images, batches: SeededBatches, config: CfgNode, keep_workers: bool) -> DataLoader:
    workers = config.DATA.NUM_WORKERS
    return DataLoader(
        images,
        batch_sampler=batches,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=config.DATA.PIN_MEMORY and batches.world.device.type == "cuda",
        persistent_workers=keep_workers and workers > 0,
        worker_init_fn=leave_signals_to_the_main_process,
        # its own generator: starting an epoch must not draw from the global one
        generator=torch.Generator().manual_seed(0),
    )


def _stream_data(config: CfgNode, stated: set[str], world: World, bad: BadSamples) -> Data:
    if "MODEL.NUM_CLASSES" not in stated:
        raise UserError(f"DATA.DATASET {config.DATA.DATASET} does not tell its classes; state MODEL.NUM_CLASSES")

    def batches(transform: Compose, train: bool) -> Batches:
        images = StreamImages(config, transform, reading_mode(config, train), train)
        loader = StreamLoader(images, config, world)
        return Batches(images, loader.position, loader, bad)

    held_out = batches(evaluation_transform(config), train=False)
    train = None if config.EVAL_MODE else batches(train_transform(config), train=True)
    return Data(train, held_out, [str(number) for number in range(config.MODEL.NUM_CLASSES)])


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
