"""Which images a process sees, in which order, and the seed of their augmentation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DistributedSampler, Sampler, TensorDataset

from classification.world import World


class SeededBatches(Sampler):
    """Batches of one process, each a list ``[seed, index, index, ...]``.

    The seed depends on (run seed, epoch, rank, batch number) alone: neither on how many workers load the data nor on
    what was loaded before. So an epoch can be repeated exactly, and entered at any batch without loading those before
    it: workers have no random state of their own that a checkpoint would have to hold. `order` is that of training; by
    default a random one, in which each image comes once.
    """

    def __init__(
        self, size: int, batch_size: int, world: World, seed: int, train: bool, order: DistributedSampler | None = None
    ) -> None:
        self.batch_size, self.world, self.seed, self.train = batch_size, world, seed, train
        self.epoch = self.start = 0
        self._size = size
        if order is None:
            indices = TensorDataset(torch.arange(size))
            order = DistributedSampler(indices, world.size, world.rank, shuffle=True, seed=seed, drop_last=True)
        self._order = order

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the order and the seeds of this epoch, entered at batch number `start`; training only.

        The length stays that of the whole epoch.
        """
        self.epoch, self.start = epoch, start
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        mine = len(self._mine()) if not self.train else len(self._order)
        return mine // self.batch_size if self.train else -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(self._order) if self.train else self._mine()
        for number in range(self.start, len(self)):
            start = number * self.batch_size
            yield [self._batch_seed(number), *indices[start : start + self.batch_size]]

    def _mine(self) -> list[int]:
        """Every `world.size`-th image: none twice and none left out, so ranks may differ by one image."""
        return list(range(self.world.rank, self._size, self.world.size))

    def _batch_seed(self, number: int) -> int:
        key = [self.seed, self.epoch, self.world.rank, number, int(self.train)]
        return int(np.random.SeedSequence(key).generate_state(1)[0])
