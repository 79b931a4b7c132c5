"""Training augmentation: timm's, as the published trainer calls it."""

from __future__ import annotations

import random
from typing import Any

from PIL import Image
from timm.data import create_transform
from torchvision import transforms
from yacs.config import CfgNode

from vmamba.models.from_config import input_channels
from vmamba.preprocess import SMALL_IMAGE, image_size, interpolation_mode


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

    Up to 32 pixels, the random resized crop gives way to a resize to the input size, padding and a crop.
    """
    aug, size = config.AUG, image_size(config)
    # timm takes None too, which its annotation leaves out; 0 would still call a colour jitter that does nothing
    jitter: Any = aug.COLOR_JITTER if aug.COLOR_JITTER > 0 else None
    transform = create_transform(
        input_size=size,
        is_training=True,
        scale=tuple(aug.SCALE),
        ratio=tuple(aug.RATIO),
        hflip=aug.HFLIP,
        color_jitter=jitter,
        auto_augment=aug.AUTO_AUGMENT if aug.AUTO_AUGMENT != "none" else None,
        interpolation=config.DATA.INTERPOLATION,
        mean=tuple(config.DATA.MEAN),
        std=tuple(config.DATA.STD),
        re_prob=aug.REPROB,
        re_mode=aug.REMODE,
        re_count=aug.RECOUNT,
    )
    steps = list(transform.transforms)
    if max(size) <= SMALL_IMAGE:
        steps[:1] = [
            transforms.Resize(size, interpolation=interpolation_mode(config)),
            PaddedCrop(size, aug.CROP_PADDING),
        ]
    if needs_colour(config) and input_channels(config) == 1:
        to_tensor = next(i for i, step in enumerate(steps) if type(step).__name__.endswith("ToTensor"))
        steps.insert(to_tensor, transforms.Grayscale(1))
    return transforms.Compose(steps)


def split_transform(transform: transforms.Compose) -> tuple[transforms.Compose, transforms.Compose]:
    """Return the steps before and after the conversion to a tensor; the latter work on batches too."""
    names = [type(step).__name__ for step in transform.transforms]
    place = next(i for i, name in enumerate(names) if name.endswith("ToTensor"))
    return transforms.Compose(transform.transforms[:place]), transforms.Compose(transform.transforms[place + 1 :])


def needs_colour(config: CfgNode) -> bool:
    """True when images are augmented in RGB whatever the model reads: timm's automatic policies know no gray images."""
    return config.AUG.AUTO_AUGMENT != "none" or input_channels(config) == 3
