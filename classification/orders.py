"""Training orders other than one shuffle of all images: repeated augmentation, and each process on its own part."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DistributedSampler
from yacs.config import CfgNode

from classification.sampler import SeededBatches
from classification.world import World

# An epoch of repeated augmentation is rounded down to this many images, as DeiT published it.
_ROUND = 256
_PART = "part"


class RepeatedOrder(DistributedSampler):
    """Each image `repeats` times in a row, dealt out over the processes; an epoch stays as long as without repeats.

    A single process has the repeats of an image beside one another, in its batch, each augmented by itself.
    timm's `RepeatAugSampler` (Hoffer et al. 2020, section 3; DeiT), seeded by the run as well as by the epoch.
    """

    def __init__(self, size: int, world: World, seed: int, repeats: int) -> None:
        super().__init__(range(size), world.size, world.rank, seed=seed)  # type: ignore[arg-type]
        rounding = _ROUND if size >= _ROUND else 0
        self._repeated = RepeatAugSampler(
            range(size), world.size, world.rank, num_repeats=repeats, selected_round=rounding
        )

    def __len__(self) -> int:
        return len(self._repeated)

    def __iter__(self) -> Iterator[int]:
        self._repeated.set_epoch(self.seed + self.epoch)
        return iter(self._repeated)


class OwnPartOrder(DistributedSampler):
    """Images rank, rank + world, ... alone, shuffled: the part that this process holds in memory."""

    def __init__(self, size: int, world: World, seed: int) -> None:
        super().__init__(range(size), world.size, world.rank, seed=seed)  # type: ignore[arg-type]
        self._part = torch.arange(world.rank, size, world.size)
        self._count = size // world.size

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        chosen = self._part[torch.randperm(len(self._part), generator=generator)]
        return iter(chosen[: self._count].tolist())


def training_batches(config: CfgNode, size: int, world: World) -> SeededBatches:
    """Return the batches of a training run over `size` images, in the order that the configuration asks for."""
    name = order_name(config, world)
    order: DistributedSampler | None = None
    if name == _PART:
        order = OwnPartOrder(size, world, config.SEED)
    elif name:
        order = RepeatedOrder(size, world, config.SEED, config.AUG.REPEATS)
    return SeededBatches(size, config.DATA.BATCH_SIZE, world, config.SEED, train=True, order=order)


def order_name(config: CfgNode, world: World) -> str:
    """Return what tells the order of training from others, for checkpoints; "" where each image comes once."""
    if config.AUG.REPEATS > 1:
        return f"repeats {config.AUG.REPEATS}"
    own_part = config.DATA.ZIP_MODE and config.DATA.CACHE_MODE == "part" and world.size > 1
    return _PART if own_part else ""
