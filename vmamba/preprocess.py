"""From an image file to the tensor that a trained model expects."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torchvision import transforms

from vmamba.errors import UserError

RESIZE_RATIO = 256 / 224
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


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (height, width) of the configured input."""
    size = config["DATA"]["IMG_SIZE"]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def image_mode(channels: int) -> str:
    """Return the PIL mode of images with that many channels; `UserError` where there is none."""
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise UserError(f"no image file has {channels} channels; a model of images takes 1, 3 or 4")
    return modes[channels]


def evaluation_transform(config: Mapping[str, Any]) -> transforms.Compose:
    """Return the published validation transform, PIL image to normalised tensor [C, H, W].

    Above 32 pixels: resize the short side to 256/224 of the input size and crop the centre, or squash to the input
    size when ``TEST.CROP`` is off. Up to 32 pixels: resize to the input size. The rule of the Swin and VMamba trainers.
    """
    height, width = image_size(config)
    mode = interpolation_mode(config)
    crop = config.get("TEST", {}).get("CROP", True)
    steps: list = []
    if max(height, width) > SMALL_IMAGE and crop:
        larger = (int(RESIZE_RATIO * height), int(RESIZE_RATIO * width))
        steps += [
            transforms.Resize(larger[0] if height == width else larger, interpolation=mode),
            transforms.CenterCrop((height, width)),
        ]
    else:
        steps.append(transforms.Resize((height, width), interpolation=mode))
    steps += [transforms.ToTensor(), transforms.Normalize(list(config["DATA"]["MEAN"]), list(config["DATA"]["STD"]))]
    return transforms.Compose(steps)


def interpolation_mode(config: Mapping[str, Any]) -> transforms.InterpolationMode:
    """Return the configured interpolation; ``random`` is for training alone and means bilinear here."""
    name = config["DATA"].get("INTERPOLATION", "bicubic")
    return transforms.InterpolationMode("bilinear" if name == "random" else name)
