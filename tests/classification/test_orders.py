"""Repeated augmentation: timm's sampler in the trainer's seeds, each repeat another crop, any epoch again."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler

from classification.orders import RepeatedOrder
from classification.world import World
from tests.classification.marked_images import noise, numbers, plain_data, write_marked


@pytest.mark.parametrize(("size", "world"), [(600, 1), (600, 4), (100, 2)])
def test_repeats_are_dealt_out_as_timm_does(size, world):
    kept = size // 256 * 256 if size >= 256 else size
    together: Counter = Counter()
    for rank in range(world):
        order = RepeatedOrder(size, World(rank, world), seed=5, repeats=3)
        order.set_epoch(2)
        timms = RepeatAugSampler(range(size), world, rank, selected_round=256 if size >= 256 else 0)
        timms.set_epoch(7)
        assert list(order) == list(timms) and len(order) == kept // world == len(list(order))
        together.update(order)
    assert max(together.values()) == 3 and len(together) <= kept // 3 + 2


CROPS = ("AUG.REPEATS", 2, "AUG.ENABLE", True, "AUG.AUTO_AUGMENT", "none", "AUG.COLOR_JITTER", 0.0, "AUG.REPROB")


def test_one_process_gets_different_crops_of_an_image_in_one_batch(tmp_path):
    root = write_marked(tmp_path, {"cat": 12})
    for path in root.rglob("*.png"):
        Image.fromarray(noise(12, 12)).save(path)
    batches = plain_data(root, *CROPS, 0.0).train
    _, *order = next(iter(batches.sampler))
    images, _ = next(iter(batches))
    assert order[0::2] == order[1::2] and len(set(order)) == 2
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[2], images[3])


def test_processes_get_different_crops_of_the_same_images(tmp_path):
    root = write_marked(tmp_path, {"cat": 12})
    orders, images = [], []
    for rank in range(2):
        batches = plain_data(root, *CROPS, 1.0, world=World(rank, 2)).train
        orders.append([batch[1:] for batch in batches.sampler])
        images.append([batches.dataset.__getitems__(batch).images for batch in batches.sampler])
        again = [batches.dataset.__getitems__(batch).images for batch in batches.sampler]
        assert all(torch.equal(a, b) for a, b in zip(images[-1], again))
    assert orders[0] == orders[1] and len(orders[0]) == 1
    assert not torch.equal(images[0][0], images[1][0])


def test_an_epoch_of_repeats_changes_with_the_epoch_and_comes_back(tmp_path):
    batches = plain_data(write_marked(tmp_path, {"cat": 12}), "AUG.REPEATS", 3).train
    first, second, again = (numbers(batches, epoch) for epoch in (0, 1, 0))
    assert first == again != second
    assert set(Counter(sum(first, [])).values()) == {3} and len(sum(first, [])) == 12
