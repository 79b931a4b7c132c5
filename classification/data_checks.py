"""Settings of data and augmentation: values that make no sense, pairs that do not go together, what has no effect."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from yacs.config import CfgNode

from classification.jump_cp import is_cells
from classification.sources import HUB, is_stream
from classification.streams import STREAMS
from classification.torchvision_sets import SETS
from vmamba.errors import UserError, closest
from vmamba.models.from_config import input_channels
from vmamba.preprocess import SMALL_IMAGE, image_size

_CROP_MODES = ("rrc", "src", "rkrc", "rkrr")
_PROBABILITIES = ("VFLIP", "GRAYSCALE_PROB", "BLUR_PROB", "COLOR_JITTER_PROB")
_OF_TRANSFORM = (
    "AUG.COLOR_JITTER", "AUG.COLOR_JITTER_PROB", "AUG.AUTO_AUGMENT", "AUG.REPROB", "AUG.REMODE", "AUG.RECOUNT",
    "AUG.HFLIP", "AUG.VFLIP", "AUG.SCALE", "AUG.RATIO", "AUG.CROP_PADDING", "AUG.CROP_MODE", "AUG.GRAYSCALE_PROB",
    "AUG.BLUR_PROB",
)  # fmt: skip
# (true when it applies, the keys, why they do nothing)
DATA_IGNORED: tuple[tuple[Callable[[CfgNode], bool], tuple[str, ...], str], ...] = (
    (lambda c: not c.AUG.ENABLE, (*_OF_TRANSFORM, "AUG.CELLS"), "AUG.ENABLE is off"),
    (
        lambda c: is_cells(c.DATA.DATASET) and c.AUG.ENABLE,
        _OF_TRANSFORM,
        "cells have an augmentation of their own, AUG.CELLS",
    ),
    (
        lambda c: is_cells(c.DATA.DATASET),
        ("DATA.INTERPOLATION", "TEST.CROP", "TEST.CROP_RATIO"),
        "images of cells are not resized",
    ),
    (lambda c: not is_cells(c.DATA.DATASET), ("AUG.CELLS",), "it belongs to DATA.DATASET jumpcp"),
    (
        lambda c: c.AUG.AUTO_AUGMENT != "none" and not c.AUG.AUTO_AUGMENT.startswith("3a"),
        ("AUG.COLOR_JITTER", "AUG.COLOR_JITTER_PROB"),
        "AUG.AUTO_AUGMENT replaces it",
    ),
    (lambda c: _small(c), ("AUG.SCALE", "AUG.RATIO", "AUG.CROP_MODE"), "images up to 32 pixels are padded and cropped"),
    (lambda c: _small(c), ("TEST.CROP", "TEST.CROP_RATIO"), "images up to 32 pixels are resized"),
    (lambda c: not _small(c) and not c.TEST.CROP, ("TEST.CROP_RATIO",), "TEST.CROP is off"),
    (
        lambda c: not _small(c) and c.AUG.CROP_MODE == "src",
        ("AUG.SCALE", "AUG.RATIO"),
        "AUG.CROP_MODE src crops an image that is resized by its short side",
    ),
    (
        lambda c: not _small(c) and c.AUG.CROP_MODE != "src",
        ("AUG.CROP_PADDING",),
        "images above 32 pixels are resized and cropped",
    ),
    (
        lambda c: not c.DATA.DATASET.startswith((HUB, *STREAMS)),
        ("DATA.INPUT_KEY", "DATA.TARGET_KEY"),
        "DATA.DATASET has no named columns",
    ),
    (lambda c: c.DATA.DATASET not in SETS, ("DATA.DOWNLOAD",), "only data sets of torchvision are fetched"),
    (
        lambda c: c.DATA.DATASET in (*SETS, "digits", "fashion_mnist"),
        ("DATA.TRAIN_SPLIT", "DATA.VAL_SPLIT"),
        "DATA.DATASET has splits of its own",
    ),
    (lambda c: is_stream(c.DATA.DATASET), ("DATA.MAX_BAD",), "a stream's reader skips what it cannot read"),
)


def check_data(config: CfgNode) -> None:
    """Raise `UserError` for the first setting of data or augmentation that cannot be."""
    data, aug = config.DATA, config.AUG
    if aug.CROP_MODE not in _CROP_MODES:
        hint = closest(aug.CROP_MODE, _CROP_MODES)
        raise UserError(f"AUG.CROP_MODE '{aug.CROP_MODE}' is unknown; it is one of {', '.join(_CROP_MODES)}.{hint}")
    for name in _PROBABILITIES:
        if aug[name] is not None and not 0 <= aug[name] <= 1:
            raise UserError(f"AUG.{name} must lie between 0 and 1, not {aug[name]}")
    for key, value, least in (("AUG.REPEATS", aug.REPEATS, 1), ("DATA.MAX_BAD", data.MAX_BAD, 0)):
        if value < least:
            raise UserError(f"{key} must be at least {least}, not {value}")
    if not 0 < config.TEST.CROP_RATIO <= 1:
        raise UserError(f"TEST.CROP_RATIO must be above 0 and at most 1, not {config.TEST.CROP_RATIO}")
    _check_jitter(aug.COLOR_JITTER)
    for key in ("TRAIN_SPLIT", "VAL_SPLIT"):
        if not data[key]:
            raise UserError(f"DATA.{key} is empty; it names a folder, an archive or a split, train and val by default")
    if data.ZIP_MODE and data.DATASET != "imagenet":
        raise UserError(f"DATA.ZIP_MODE reads DATA.DATASET imagenet, not {data.DATASET}; leave one of them out")
    if aug.REPEATS > 1:
        _check_repeats(data)
    coloured = aug.ENABLE and not is_cells(data.DATASET)
    if input_channels(config) == 4 and coloured and (aug.AUTO_AUGMENT != "none" or aug.GRAYSCALE_PROB):
        raise UserError(
            "AUG.AUTO_AUGMENT and AUG.GRAYSCALE_PROB change 3 channels, the model has 4; set AUG.AUTO_AUGMENT none and "
            "AUG.GRAYSCALE_PROB 0"
        )


def _check_jitter(jitter: float | list) -> None:
    numbers = jitter if isinstance(jitter, list) else [jitter]
    fits = all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < inf for n in numbers)
    if not fits or (isinstance(jitter, list) and len(jitter) not in (3, 4)):
        raise UserError(
            "AUG.COLOR_JITTER is one number of at least 0, or [brightness, contrast, saturation] or these and the hue, "
            f"not {jitter}"
        )
    if len(numbers) == 4 and numbers[3] > 0.5:
        raise UserError(f"AUG.COLOR_JITTER: the hue, its fourth number, is at most 0.5, not {numbers[3]}")


def _check_repeats(data: CfgNode) -> None:
    if data.ZIP_MODE and data.CACHE_MODE == "part":
        raise UserError(
            "AUG.REPEATS deals an image to several processes, and with DATA.CACHE_MODE part each has other images in "
            "memory; choose --cache-mode no or full"
        )
    if is_stream(data.DATASET):
        raise UserError(f"AUG.REPEATS needs images in any order, which {data.DATASET} does not give; leave it at 1")


def _small(config: CfgNode) -> bool:
    return max(image_size(config)) <= SMALL_IMAGE
