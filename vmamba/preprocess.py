"""From an image file to the tensor that a trained model expects."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torchvision import transforms

from vmamba.errors import UserError

CROP_RATIO = 224 / 256
SMALL_IMAGE = 32
# What an unreadable image raises while it is read or converted.
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: str | Path) -> Image.Image:
    """Return the image file decoded and turned upright by its EXIF orientation; raises one of `IMAGE_ERRORS`.

    A damaged EXIF block leaves the image as it is stored.
    """
    with open(path, "rb") as file:
        image = Image.open(file)
        image.load()
    return turned_upright(image)


def turned_upright(image: Image.Image) -> Image.Image:
    """Return the image itself, turned as its EXIF orientation says; with a damaged EXIF block, or none, as it is."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except (ValueError, SyntaxError, TypeError, KeyError, struct.error):
        return image
    return image


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in `mode`: L, RGB or RGBA.

    Gray values of 16 bits are divided by 256; Pillow would clip them at 255. A mode without transparency shows the
    colours as stored. Raises `ValueError` for 32-bit values, which have no fixed range.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are 32-bit values (mode {image.mode}) of no fixed range; store it with 8 or 16 bits"
        )
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (height, width) of the configured input."""
    size = config["DATA"]["IMG_SIZE"]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def with_size(config: Mapping[str, Any], size: tuple[int, int] | None) -> Mapping[str, Any]:
    """Return the configuration for images of another (height, width), or itself for None."""
    return config if size is None else {**config, "DATA": {**config["DATA"], "IMG_SIZE": list(size)}}


def image_mode(channels: int) -> str:
    """Return the PIL mode of images with that many channels; `UserError` where there is none."""
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise UserError(f"no image file has {channels} channels; a model of images takes 1, 3 or 4")
    return modes[channels]


def evaluation_transform(config: Mapping[str, Any]) -> transforms.Compose:
    """Return the published validation transform, PIL image to normalised tensor [C, H, W].

    Above 32 pixels: resize the image, its proportions kept, until it covers 256/224 of the input size (1/``CROP_RATIO``
    under ``TEST``), and crop the centre; or squash it to the input size when ``TEST.CROP`` is off. Up to 32 pixels:
    resize to the input size. The rule of the Swin and VMamba trainers, whose inputs are square.
    """
    height, width = image_size(config)
    mode = interpolation_mode(config)
    test = config.get("TEST", {})
    steps: list = []
    if max(height, width) > SMALL_IMAGE and test.get("CROP", True):
        ratio = test.get("CROP_RATIO", CROP_RATIO)
        steps += [
            covering_resize((int(height / ratio), int(width / ratio)), mode),
            transforms.CenterCrop((height, width)),
        ]
    else:
        steps.append(transforms.Resize((height, width), interpolation=mode))
    steps += [transforms.ToTensor(), transforms.Normalize(list(config["DATA"]["MEAN"]), list(config["DATA"]["STD"]))]
    return transforms.Compose(steps)


def covering_resize(size: tuple[int, int], mode: transforms.InterpolationMode) -> Any:
    """Return the resize, proportions kept, to the smallest image that covers `size` (height, width)."""
    if size[0] == size[1]:
        return transforms.Resize(size[0], interpolation=mode)
    from timm.data.transforms import ResizeKeepRatio

    return ResizeKeepRatio(size, interpolation=mode.value)


def interpolation_mode(config: Mapping[str, Any]) -> transforms.InterpolationMode:
    """Return the configured interpolation; ``random`` is for training alone and means bilinear here."""
    name = config["DATA"].get("INTERPOLATION", "bicubic")
    return transforms.InterpolationMode("bilinear" if name == "random" else name)
