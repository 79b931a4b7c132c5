"""Hub data sets and streams through timm's readers: what the trainer adds to them, and what it says without them."""

from __future__ import annotations

import importlib.util
import io
import sys
import tarfile
import types

import numpy as np
import pytest
import timm.data
import torch
from timm.data.dataset import IterableImageDataset
from timm.data.readers.shared_count import SharedCount

from classification.config import load_config
from classification.data import build_data
from classification.sources import open_source
from classification.streams import loaders_of
from classification.world import World
from tests.classification.marked_images import encoded, marked, numbers, plain_data
from vmamba.errors import UserError

STREAM = ("DATA.DATASET", "wds/", "MODEL.NUM_CLASSES", 2)


class Table(dict):
    """The columns of the package `datasets`, and what kind each is of."""

    features = {"label": types.SimpleNamespace(names=["cat", "dog"])}


class HubReader:
    """timm's reader of hub data sets, with the data in memory."""

    def __init__(self, name, root, split, input_key, target_key):
        if split not in ("train", "test"):
            raise ValueError(f'Unknown split "{split}".\nShould be one of [train, test].')
        self.opened = (name, root, input_key, target_key)
        self.dataset = Table(label=[0, 1, 1, 0])

    def __getitem__(self, index):
        return io.BytesIO(encoded(marked(index)) if index != 2 else b"<html>"), 0


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("classification.hugging_face.require_package", lambda *_: None)
    module = types.ModuleType("timm.data.readers.reader_hfds")
    module.ReaderHfds = HubReader
    monkeypatch.setitem(sys.modules, "timm.data.readers.reader_hfds", module)
    return ("DATA.DATASET", "hfds/Owner/Pets", "DATA.VAL_SPLIT", "test")


def test_a_hub_data_set_is_a_source_like_any_other(hub):
    data = plain_data("cache", *hub)
    source = data.held_out.dataset.source
    assert source.reader.opened == ("Owner/Pets", "cache", "image", "label")
    assert data.classes == ["cat", "dog"] and source.labels.tolist() == [0, 1, 1, 0]
    assert numbers(data.held_out) == [[0, 1, 3]] and len(data.held_out.bad) == 1
    with pytest.raises(UserError, match="cannot read the image image 2 of Owner/Pets test: it is no image"):
        numbers(plain_data("cache", *hub, "DATA.MAX_BAD", 0).held_out)


def test_a_split_that_a_hub_data_set_has_not_is_one_line(hub):
    with pytest.raises(UserError, match="split 'val': Unknown split \"val\". Should be .*; DATA.TRAIN_SPLIT") as error:
        plain_data("", *hub[:2])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "package", "version"),
    [("hfds/cifar10", "datasets", "==5.2.0"), ("wds/", "webdataset", "==1.0.2 braceexpand==0.1.7")],
)
def test_a_missing_package_is_one_line(monkeypatch, name, package, version):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    config, stated = load_config(opts=["DATA.DATASET", name, "MODEL.NUM_CLASSES", "2"])
    message = f"DATA.DATASET {name} needs the package '{package}'; install it with: pip install {package}{version}$"
    with pytest.raises(UserError, match=message):
        build_data(config, stated, World())


class Shards:
    """A reader of timm's kind: the images of 4 shards for each worker, another order in each epoch."""

    dist_num_replicas = 1

    def __init__(self, num_samples, batch_size, is_training):
        self.num_samples, self.batch_size, self.is_training = num_samples, batch_size, is_training
        self.epoch, self.workers = SharedCount(), 1
        self.split_info = types.SimpleNamespace(filenames=["0.tar", "1.tar", "2.tar", "3.tar"])

    def set_epoch(self, epoch):
        self.epoch.value = epoch

    def set_loader_cfg(self, num_workers):
        self.workers = num_workers

    def __len__(self):
        return self.num_samples

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        if not self.is_training:
            assert self.dist_num_replicas == 1, "it takes as many images on each process, and waits for them"
            for name in self.split_info.filenames[info.id :: info.num_workers]:
                for number in range(int(name[0]), self.num_samples, 4):
                    yield marked(number), int(number >= 6)
            return
        order = np.random.default_rng(self.epoch.value).permutation(self.num_samples)
        for number in order[info.id :: info.num_workers]:
            yield marked(int(number)), int(number >= 6)


@pytest.fixture
def streamed(monkeypatch):
    monkeypatch.setattr("classification.streams.require_package", lambda *_: None)

    def create(name, split, num_samples, batch_size, is_training, **more):
        if not num_samples:
            raise RuntimeError("Invalid split definition, num_samples not specified in train mode.")
        return IterableImageDataset(None, reader=Shards(num_samples, batch_size, is_training))

    monkeypatch.setattr(timm.data, "create_dataset", create)
    return (*STREAM, "DATA.TRAIN_SPLIT", "train-{0..3}.tar|12", "DATA.VAL_SPLIT", "val-0.tar|10", "DATA.NUM_WORKERS", 1)


def test_a_stream_gives_whole_batches_and_the_same_epoch_again(streamed):
    data = plain_data("", *streamed)
    assert (len(data.train), data.train.images, len(data.held_out), data.classes) == (3, 12, 3, ["0", "1"])
    first, second, again = (numbers(data.train, epoch) for epoch in (0, 1, 0))
    assert first == again != second and sorted(sum(first, [])) == list(range(12))
    assert numbers(data.held_out) == [[0, 4, 8, 1], [5, 9, 2, 6], [3, 7]]
    data.train.sampler.set_epoch(0, start=2)
    assert [round(float(images[0, 0, 0, 0] * 255 / 8)) for images, _ in data.train] == [first[2][0]]


def test_the_augmentation_of_a_stream_follows_from_the_epoch(streamed):
    augmented = ("AUG.ENABLE", True, "AUG.AUTO_AUGMENT", "none", "AUG.COLOR_JITTER", 0.4, "AUG.REPROB", 0.5)
    epochs = []
    for epoch in (1, 1, 2):
        batches = plain_data("", *streamed, *augmented).train
        batches.sampler.set_epoch(epoch)
        epochs.append(torch.cat([images for images, _ in batches]))
    assert torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], epochs[2])


def evaluated(stream, root, processes):
    """The numbers of the images that each of so many processes evaluates."""
    found = []
    for rank in range(processes):
        batches = plain_data(root, *stream, world=World(rank, processes)).held_out
        images = [loaded.images for loaded in batches._loader]
        found.append([round(float(image[0, 0, 0] * 255 / 8)) for batch in images for image in batch])
    return found


@pytest.mark.parametrize(
    ("processes", "held_out"),
    [(2, [[0, 4, 8, 2, 6], [1, 5, 9, 3, 7]]), (5, [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7], []])],
)
def test_an_evaluation_of_shards_counts_each_image_once(streamed, monkeypatch, processes, held_out):
    monkeypatch.setattr(Shards, "dist_num_replicas", processes)
    streamed = (*streamed, "EVAL_MODE", True, "DATA.NUM_WORKERS", 2)
    assert evaluated(streamed, "", processes) == held_out


@pytest.mark.parametrize(
    ("name", "shards", "processes", "loaders"),
    [("wds/", 4, 1, 4), ("wds/", 4, 3, 1), ("hfids/a", 4, 2, 2), ("hfids/a", 4, 3, 4), ("tfds/a", None, 3, 8)],
)
def test_no_loader_is_without_a_shard(name, shards, processes, loaders):
    images = types.SimpleNamespace(title=name, shards=shards, train=True)
    assert loaders_of(images, 8, World(0, processes)) == loaders and loaders_of(images, 1, World(0, processes)) == 1
    if name == "wds/":
        with pytest.raises(UserError, match="wds/ has 4 shards for 5 processes; each needs one"):
            loaders_of(images, 8, World(0, 5))
        images.train = False
        assert loaders_of(images, 8, World(0, 5)) == 1


def test_what_a_stream_cannot_do_is_one_line(streamed):
    with pytest.raises(UserError, match="does not tell its classes; state MODEL.NUM_CLASSES"):
        plain_data("", "DATA.DATASET", "wds/")
    with pytest.raises(UserError, match=r"split 'train': Invalid split definition.*SPLIT\|NUMBER"):
        plain_data("", *STREAM, "DATA.VAL_SPLIT", "val|4")
    with pytest.raises(UserError, match="wds/ has too few images for a batch of 16"):
        plain_data("", *streamed, "DATA.BATCH_SIZE", 16)


def test_the_package_webdataset_streams_shards(tmp_path, monkeypatch):
    for split, count in (("train", 12), ("val", 6)):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as file:
            for number in range(count):
                for ending, data in (("png", encoded(marked(number))), ("cls", b"%d" % (number > 5))):
                    info = tarfile.TarInfo(f"{number:03d}.{ending}")
                    info.size = len(data)
                    file.addfile(info, io.BytesIO(data))
    splits = ("DATA.TRAIN_SPLIT", "train-{0..0}.tar|12", "DATA.VAL_SPLIT", "val-0.tar|6", "DATA.NUM_WORKERS", 1)
    data = plain_data(tmp_path, *STREAM, *splits)
    assert numbers(data.held_out) == [[0, 1, 2, 3], [4, 5]]
    first, again = numbers(data.train, 3), numbers(data.train, 3)
    assert first == again and sorted(sum(first, [])) == list(range(12))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert evaluated((*STREAM, *splits, "EVAL_MODE", True), tmp_path, 2) == [[0, 1, 2, 3, 4, 5], []]


def test_the_package_datasets_reads_a_folder(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    assert datasets.config.HF_HUB_OFFLINE, "tests/conftest.py keeps the package from the network"
    for number in range(4):
        path = tmp_path / "Pets" / "train" / ("cat" if number < 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(marked(number)))
    name = f"hfds/{tmp_path / 'Pets'}"
    config, _ = load_config(opts=["DATA.DATASET", name, "DATA.DATA_PATH", str(tmp_path / "cache")])
    source = open_source(config, train=True)
    assert source.classes == ["cat", "dog"] and source.labels.tolist() == [0, 0, 1, 1]
    assert source.load(3).getpixel((0, 0)) == (24, 24, 24)
    splits = ("DATA.TRAIN_SPLIT", "train", "DATA.VAL_SPLIT", "train|4", "DATA.NUM_WORKERS", 2)
    stream = ("DATA.DATASET", name.replace("hfds", "hfids"), "MODEL.NUM_CLASSES", 2)
    data = plain_data(tmp_path / "cache", *stream, *splits)
    first, second, again = (numbers(data.train, epoch) for epoch in (0, 1, 0))
    assert first == again != second and sorted(first[0]) == [0, 1, 2, 3] == numbers(data.held_out)[0]
    with pytest.raises(UserError, match="cannot open DATA.DATASET hfids/absent-folder, split 'train'"):
        plain_data(tmp_path, "DATA.DATASET", "hfids/absent-folder", *stream[2:], *splits)
