"""Training augmentation: timm's, as the published trainers call it."""

from __future__ import annotations

import random
from typing import Any

from PIL import Image
from timm.data import create_transform
from torchvision import transforms
from yacs.config import CfgNode

from vmamba.models.from_config import input_channels
from vmamba.preprocess import (
    SMALL_IMAGE,
    covering_resize,
    evaluation_transform,
    image_mode,
    image_size,
    interpolation_mode,
)


class PaddedCrop:
    """A crop of `size` (height, width) at a random place of the image padded with `padding` black pixels on each side.

    torchvision's RandomCrop(size, padding) for images of that size, in one call of PIL: small images need it.
    """

    def __init__(self, size: tuple[int, int], padding: int) -> None:
        self.size, self.padding = size, padding

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the crop of a PIL image."""
        top, left = (random.randint(-self.padding, self.padding) for _ in range(2))
        return image.crop((left, top, left + self.size[1], top + self.size[0]))

    def __repr__(self) -> str:
        return f"PaddedCrop({self.size}, padding={self.padding})"


def train_transform(config: CfgNode) -> transforms.Compose:
    """Return the augmentation of one training image, PIL image to normalised tensor [C, H, W].

    With ``AUG.ENABLE`` off it is the evaluation transform.
    """
    if not config.AUG.ENABLE:
        return evaluation_transform(config)
    steps = list(_timm_transform(config).transforms)
    steps[:1] = _crop(config, steps[0])
    if reading_mode(config, train=True) == "RGB" and input_channels(config) == 1:
        to_tensor = next(i for i, step in enumerate(steps) if type(step).__name__.endswith("ToTensor"))
        steps.insert(to_tensor, transforms.Grayscale(1))
    return transforms.Compose(steps)


def split_transform(transform: transforms.Compose) -> tuple[transforms.Compose, transforms.Compose]:
    """Return the steps before and after the conversion to a tensor; the latter work on batches too."""
    names = [type(step).__name__ for step in transform.transforms]
    place = next(i for i, name in enumerate(names) if name.endswith("ToTensor"))
    return transforms.Compose(transform.transforms[:place]), transforms.Compose(transform.transforms[place + 1 :])


def reading_mode(config: CfgNode, train: bool) -> str:
    """Return the PIL mode that images are read in.

    That of the model's channels, but RGB where a gray image is augmented: timm's policies know no gray images.
    """
    aug = config.AUG
    coloured = aug.AUTO_AUGMENT != "none" or aug.GRAYSCALE_PROB > 0
    return "RGB" if train and aug.ENABLE and coloured else image_mode(input_channels(config))


def _timm_transform(config: CfgNode) -> Any:
    aug = config.AUG
    # timm takes None too, which its annotation leaves out; 0 would still call a colour jitter that does nothing
    jitter: Any = aug.COLOR_JITTER if aug.COLOR_JITTER != 0 else None
    return create_transform(
        input_size=image_size(config),
        is_training=True,
        train_crop_mode=aug.CROP_MODE if aug.CROP_MODE in ("rkrc", "rkrr") else None,
        scale=tuple(aug.SCALE),
        ratio=tuple(aug.RATIO),
        hflip=aug.HFLIP,
        vflip=aug.VFLIP,
        color_jitter=tuple(jitter) if isinstance(jitter, list) else jitter,
        color_jitter_prob=aug.COLOR_JITTER_PROB,
        grayscale_prob=aug.GRAYSCALE_PROB,
        gaussian_blur_prob=aug.BLUR_PROB,
        auto_augment=aug.AUTO_AUGMENT if aug.AUTO_AUGMENT != "none" else None,
        interpolation=config.DATA.INTERPOLATION,
        mean=tuple(config.DATA.MEAN),
        std=tuple(config.DATA.STD),
        re_prob=aug.REPROB,
        re_mode=aug.REMODE,
        re_count=aug.RECOUNT,
    )


def _crop(config: CfgNode, timm_crop: Any) -> list[Any]:
    """Return the first steps: up to 32 pixels a resize and a padded crop, else what ``AUG.CROP_MODE`` says."""
    size, mode = image_size(config), interpolation_mode(config)
    if max(size) <= SMALL_IMAGE:
        return [transforms.Resize(size, interpolation=mode), PaddedCrop(size, config.AUG.CROP_PADDING)]
    if config.AUG.CROP_MODE == "src":
        return [
            covering_resize(size, mode),
            transforms.RandomCrop(size, padding=config.AUG.CROP_PADDING, padding_mode="reflect"),
        ]
    return [timm_crop]
