"""Augmentation of images of many channels, arrays [H, W, C]: what is done to one channel is done to all of them.

The steps and sizes are those of Kapse et al., "Fast Vision Mamba", 2025, for JUMP-CP.
"""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torchvision import transforms
from yacs.config import CfgNode

from vmamba.preprocess import image_size

_RADII = (1, 2, 3)
_KEEP_SHAPE = (lambda x: x[:, ::-1], lambda x: x[::-1], partial(np.rot90, k=2))
_QUARTER_TURNS = (partial(np.rot90, k=1), partial(np.rot90, k=3))


class RandomPaddedCrop:
    """A crop of `size` (h, w) at a random place, of the image put at a random place of a canvas of side `canvas`.

    The canvas is filled by reflection; an image that is larger is not cut before the crop.
    """

    def __init__(self, size: tuple[int, int], canvas: int) -> None:
        self.size, self.canvas = size, canvas

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the crop of an image [H, W, C]."""
        sides = [max(side, self.canvas) for side in self.size]
        x = _padded(x, sides, lambda free: random.randint(0, free))
        return _cropped(x, self.size, lambda free: random.randint(0, free))


class CentralCrop:
    """The middle of an image, of `size` (h, w); filled up by reflection where it is smaller."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the crop of an image [H, W, C]; one of that size is returned as it is."""
        return _cropped(_padded(x, self.size, lambda free: free // 2), self.size, lambda free: free // 2)


class RandomTurn:
    """With probability `p` one of: mirrored from side to side or top to bottom, turned by 90, 180 or 270 degrees."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return an image of the same shape; one that is not square is not turned by 90 or 270 degrees."""
        if random.random() >= self.p:
            return x
        square = x.shape[0] == x.shape[1]
        return random.choice([*_KEEP_SHAPE, *(_QUARTER_TURNS if square else ())])(x)


class RandomDefocus:
    """With probability `p` as a lens out of focus shows it: averaged over a disk of 1, 2 or 3 pixels' radius."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return an image [H, W, C], float32 where it is blurred."""
        if random.random() >= self.p:
            return x
        disk = soft_disk(random.choice(_RADII))
        side = disk.shape[0]
        planes = torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1), dtype=np.float32))[:, None]  # [C, 1, H, W]
        planes = F.pad(planes, [side // 2] * 4, mode="replicate")
        return F.conv2d(planes, disk[None, None])[:, 0].permute(1, 2, 0).numpy()


class RandomHoles:
    """With probability `p`, `count` black rectangles of 1 to `side` pixels a side, which may overlap."""

    def __init__(self, p: float, count: int, side: int) -> None:
        self.p, self.count, self.side = p, count, side

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return an image [H, W, C]."""
        if random.random() >= self.p:
            return x
        x = x.copy()
        for _ in range(self.count):
            height, width = (random.randint(1, min(self.side, length)) for length in x.shape[:2])
            top, left = random.randint(0, x.shape[0] - height), random.randint(0, x.shape[1] - width)
            x[top : top + height, left : left + width] = 0
        return x


def soft_disk(radius: int) -> torch.Tensor:
    """Return the weights [2 r + 1, 2 r + 1] of a disk whose edge pixels count by their share, with sum 1."""
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    distance = torch.hypot(steps[:, None], steps[None])
    disk = (radius + 0.5 - distance).clamp(0, 1)
    return disk / disk.sum()


def cell_transform(config: CfgNode, train: bool) -> transforms.Compose:
    """Return the steps from an image [H, W, C] to a normalised tensor [C, H, W]; in evaluation the normalisation alone.

    Images of another size than ``DATA.IMG_SIZE`` are cropped or filled up in evaluation, about their middle.
    """
    size, cells = image_size(config), config.AUG.CELLS
    steps: list = [CentralCrop(size)]
    if train and config.AUG.ENABLE:
        steps = [
            RandomPaddedCrop(size, cells.PAD_TO),
            RandomTurn(cells.TURN_PROB),
            RandomDefocus(cells.DEFOCUS_PROB),
            RandomHoles(cells.HOLES_PROB, cells.HOLES, cells.HOLE_SIZE),
        ]
    normalise = transforms.Normalize(list(config.DATA.MEAN), list(config.DATA.STD))
    return transforms.Compose([*steps, transforms.ToTensor(), normalise])


def _padded(x: np.ndarray, size, place) -> np.ndarray:
    free = [max(side - length, 0) for side, length in zip(size, x.shape)]
    if not any(free):
        return x
    before = [place(space) for space in free]
    return np.pad(x, [*((first, space - first) for first, space in zip(before, free)), (0, 0)], mode="reflect")


def _cropped(x: np.ndarray, size, place) -> np.ndarray:
    top, left = (place(length - side) for length, side in zip(x.shape, size))
    return x[top : top + size[0], left : left + size[1]]
