"""Data: sources, splits, augmentation, seeds, and folders that are not what they should be."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from classification.arrays import read_idx
from classification.config import load_config
from classification.data import build_data
from classification.decoding import UnreadableImage
from classification.sampler import SeededBatches
from classification.sources import open_source
from classification.transforms import PaddedCrop, split_transform, train_transform
from classification.world import World
from tests.classification.runs import write_images
from vmamba.errors import UserError
from vmamba.preprocess import evaluation_transform

TWO_CLASSES = {"train": {"cat": 5, "dog": 4}, "val": {"cat": 3, "dog": 2}}


def config_of(*opts):
    return load_config(opts=["DATA.NUM_WORKERS", "0", *(str(o) for o in opts)])


def folder_data(root, *opts, world: World | None = None):
    config, stated = config_of("DATA.DATA_PATH", root, "DATA.BATCH_SIZE", 4, "DATA.IMG_SIZE", 8, *opts)
    return config, build_data(config, stated, world or World())


# sources


def test_digits_hold_out_a_stratified_fifth_without_overlap():
    config, _ = config_of("DATA.DATASET", "digits")
    train, held_out = open_source(config, True), open_source(config, False)
    assert (len(train.labels), len(held_out.labels)) == (1437, 360)
    assert max(np.bincount(held_out.labels)) - min(np.bincount(held_out.labels)) <= 3
    assert train.images.shape[1:] == (8, 8) and train.images.max() == 255 and train.classes == list("0123456789")
    again = open_source(config, False)
    assert np.array_equal(again.images, held_out.images)


def write_idx(path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


def test_fashion_mnist_from_idx_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (6, 28, 28), dtype=np.uint8)
    for split, count in (("train", 4), ("t10k", 2)):
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images[:count])
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    config, _ = config_of("DATA.DATASET", "fashion_mnist", "DATA.DATA_PATH", tmp_path)
    held_out = open_source(config, False)
    assert np.array_equal(np.asarray(held_out.load(1)), images[1]) and list(held_out.labels) == [0, 1]
    assert len(open_source(config, True).labels) == 4 and len(held_out.classes) == 10


def test_a_broken_idx_file_says_so(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(path, np.zeros((3, 4, 4), np.uint8))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UserError, match="train-images-idx3-ubyte.gz is damaged"):
        read_idx(path)
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + bytes(12) + b"xx"))
    with pytest.raises(UserError, match="no complete idx file"):
        read_idx(path)
    with pytest.raises(UserError, match="there is no file .*make data"):
        read_idx(tmp_path / "nothing.gz")


def test_a_torchvision_set_is_one_entry(tmp_path, monkeypatch):
    class Fake:
        classes = ["a", "b"]
        targets = [0, 1, 1]

        def __init__(self, root, train):
            self.train = train

        def __getitem__(self, index):
            return Image.new("RGB", (32, 32), (index, 0, 0)), self.targets[index]

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    config, _ = config_of("DATA.DATASET", "cifar10", "DATA.DATA_PATH", tmp_path)
    source = open_source(config, True)
    assert source.labels.tolist() == [0, 1, 1] and source.dataset.train and source.load(2).getpixel((0, 0)) == (2, 0, 0)


def test_cifar_100_is_read_from_its_own_files(tmp_path, monkeypatch):
    """Planes of red, green and blue, fine labels, and the names of the classes."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)  # of the real files' sums
    root = tmp_path / "cifar-100-python"
    root.mkdir()
    for split, labels in (("train", [1, 0, 2]), ("test", [2])):
        data = np.zeros((len(labels), 3, 32, 32), np.uint8)
        data[-1, :, 3, 5] = 10, 20, 30
        entry = {"data": data.reshape(-1, 3072), "fine_labels": labels, "coarse_labels": [0] * len(labels)}
        (root / split).write_bytes(pickle.dumps(entry))
    (root / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear", "cloud"]}))
    config, _ = config_of("DATA.DATASET", "cifar100", "DATA.DATA_PATH", tmp_path)
    train, held_out = (open_source(config, train) for train in (True, False))
    assert train.labels.tolist() == [1, 0, 2] and held_out.labels.tolist() == [2]
    assert list(train.classes) == ["apple", "bear", "cloud"]
    assert train.load(2).size == (32, 32) and train.load(2).getpixel((5, 3)) == (10, 20, 30)


def test_an_absent_torchvision_set_is_one_line(tmp_path):
    config, _ = config_of("DATA.DATASET", "mnist", "DATA.DATA_PATH", tmp_path)
    with pytest.raises(UserError, match="torchvision found no MNIST in .*or set DATA.DOWNLOAD True"):
        open_source(config, True)


def test_torchvision_reads_its_own_layouts(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (4, 28, 28), dtype=np.uint8)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(4, dtype=np.uint8))):
            path = tmp_path / "MNIST" / "raw" / f"{split}-{kind}-ubyte"
            write_idx(path, array)
            path.write_bytes(gzip.decompress(path.read_bytes()))
    config, _ = config_of("DATA.DATASET", "mnist", "DATA.DATA_PATH", tmp_path)
    source = open_source(config, False)
    assert np.array_equal(np.asarray(source.load(2)), images[2]) and source.labels.tolist() == [0, 1, 2, 3]
    assert len(source.classes) == 10

    root = tmp_path / "food-101"
    (root / "meta").mkdir(parents=True)
    (root / "images").mkdir()
    names = {"apple_pie": ["apple_pie/1"], "ramen": ["ramen/2", "ramen/3"]}
    for split in ("train", "test"):
        (root / "meta" / f"{split}.json").write_text(json.dumps(names))
    for name in sum(names.values(), []):
        path = root / "images" / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 10), "red").save(path)
    config, _ = config_of("DATA.DATASET", "food101", "DATA.DATA_PATH", tmp_path)
    source = open_source(config, True)
    assert source.labels.tolist() == [0, 1, 1] and source.load(2).size == (20, 10) and len(source.classes) == 2
    (root / "images" / "ramen" / "3.jpg").write_bytes(b"")
    with pytest.raises(UnreadableImage):
        source.load(2)


def test_a_download_is_asked_for_once_and_by_the_first_process(tmp_path, monkeypatch):
    asked = []

    class Fake:
        classes, targets = ["a"], [0]

        def __init__(self, root, train, download=False):
            asked.append(download)

    monkeypatch.setattr(datasets, "CIFAR100", Fake)
    for rank in range(2):
        config, _ = config_of("DATA.DATASET", "cifar100", "DATA.DATA_PATH", tmp_path / "new", "DATA.DOWNLOAD", True)
        monkeypatch.setattr(World, "from_first", lambda self, decide: decide() if self.first else None)
        open_source(config, True, World(rank, 2))
    assert asked == [True, False, False] and (tmp_path / "new").is_dir()


def test_image_folder_takes_any_classes_and_sets_the_count(tmp_path):
    config, data = folder_data(write_images(tmp_path, TWO_CLASSES))
    assert data.classes == ["cat", "dog"] and config.MODEL.NUM_CLASSES == 2
    images, labels = next(iter(data.held_out))
    assert images.shape == (4, 3, 8, 8) and images.dtype == torch.float32 and labels.tolist() == [0, 0, 0, 1]


# folders that are not what they should be (faults 8 and 9)


@pytest.mark.parametrize(
    ("splits", "opts", "message"),
    [
        (TWO_CLASSES, ["MODEL.NUM_CLASSES", 7], r"MODEL.NUM_CLASSES is 7, but imagenet has 2 classes \(cat, dog\)"),
        (
            {"train": {"a": 4, "b": 4}, "val": {"a": 1}},
            [],
            r"train has 2 classes \(a, b\), val has 1 \(a\); only in train: b",
        ),
        ({"train": {"a": 4}, "val": {"a": 1, "c": 1}}, [], r"val has 2 \(a, c\); only in train: none; only in val: c"),
        ({"train": {"a": 2, "b": 1}, "val": {"a": 1, "b": 1}}, [], "3 training images are too few for a batch of 4"),
    ],
)
def test_classes_that_do_not_fit_are_refused(tmp_path, splits, opts, message):
    with pytest.raises(UserError, match=message) as error:
        folder_data(write_images(tmp_path, splits), *opts)
    assert "\n" not in str(error.value)


def test_a_missing_or_empty_folder_is_named(tmp_path):
    write_images(tmp_path / "imagenet", {"val": {"a": 1}})
    with pytest.raises(UserError, match=r"there is no folder .*imagenett.* Did you mean 'imagenet'\?"):
        folder_data(tmp_path / "imagenett")
    with pytest.raises(UserError, match="there is no folder .*/imagenet/train"):
        folder_data(tmp_path / "imagenet")
    with pytest.raises(UserError, match="DATA.DATA_PATH is empty; --data-path"):
        folder_data("")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file is a file, not a folder"):
        folder_data(tmp_path / "file")
    (tmp_path / "empty" / "val").mkdir(parents=True)
    with pytest.raises(UserError, match="empty/val holds no class folders"):
        folder_data(tmp_path / "empty")
    (tmp_path / "empty" / "val" / "cat").mkdir()
    with pytest.raises(UserError, match="empty/val/cat holds no images"):
        folder_data(tmp_path / "empty")


@pytest.mark.parametrize("place", ["train", "train/cat"])
def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, place):
    root = write_images(tmp_path, TWO_CLASSES)
    closed = root / place
    closed.chmod(0)
    if os.geteuid() == 0:  # root reads everything: let the refusal come from scandir()
        scan = os.scandir

        def refusing(folder):
            if str(folder) == str(closed):
                raise PermissionError(13, "Permission denied", str(folder))
            return scan(folder)

        monkeypatch.setattr(os, "scandir", refusing)
    try:
        with pytest.raises(UserError, match=f"the folder .*/{place} is not readable; check its permissions") as error:
            folder_data(root)
    finally:
        closed.chmod(0o755)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["unreadable", "truncated", "empty", "no image"])
def test_a_bad_image_is_one_line_that_names_it(tmp_path, monkeypatch, workers, kind):
    root = write_images(tmp_path, TWO_CLASSES)
    bad = root / "val" / "cat" / "1.png"
    content = bad.read_bytes()
    bad.write_bytes({"truncated": content[:100], "empty": b"", "no image": b"<html>", "unreadable": content}[kind])
    if kind == "unreadable":
        bad.chmod(0)
        if os.geteuid() == 0:  # root reads everything: let the refusal come from open()
            real = open

            def refusing(path, *args, **kwargs):
                if str(path) == str(bad):
                    raise PermissionError(13, "Permission denied", str(path))
                return real(path, *args, **kwargs)

            monkeypatch.setattr("builtins.open", refusing)
    config, data = folder_data(root, "DATA.MAX_BAD", 0)
    config.DATA.NUM_WORKERS = workers
    with pytest.raises(
        UserError, match="cannot read the image .*/val/cat/1.png: .*(repair or remove it|check its perm)"
    ) as error:
        for _ in data.held_out:
            pass
    assert "\n" not in str(error.value)


# order and seeds


@pytest.mark.parametrize(("size", "world"), [(10, 1), (10, 3), (11, 4), (3, 4), (1, 2)])
def test_evaluation_sees_every_image_once_on_any_number_of_processes(size, world):
    seen: list[int] = []
    for rank in range(world):
        batches = SeededBatches(size, 2, World(rank, world), seed=0, train=False)
        found = list(batches)
        assert len(found) == len(batches)
        seen += [index for _, *indices in found for index in indices]
    assert sorted(seen) == list(range(size))


def test_training_order_changes_with_the_epoch_and_never_repeats_an_image():
    per_epoch = []
    for epoch in (0, 1, 0):
        seen: list[int] = []
        for rank in range(2):
            batches = SeededBatches(21, 3, World(rank, 2), seed=5, train=True)
            batches.set_epoch(epoch)
            seen += [index for _, *indices in batches for index in indices]
        assert len(seen) == 18 == len(set(seen))
        per_epoch.append(seen)
    assert per_epoch[0] != per_epoch[1] and per_epoch[0] == per_epoch[2]


def epoch_of(root, workers: int, epoch: int, before: int) -> list[torch.Tensor]:
    config, stated = config_of("DATA.DATA_PATH", root, "DATA.BATCH_SIZE", 2, "DATA.IMG_SIZE", 8)
    config.DATA.NUM_WORKERS = workers
    data = build_data(config, stated, World())
    for earlier in range(before, epoch):
        data.train.sampler.set_epoch(earlier)
        list(data.train)
    data.train.sampler.set_epoch(epoch)
    return [images for images, _ in data.train]


def test_an_epoch_is_the_same_whatever_the_workers_and_what_came_before(tmp_path):
    root = write_images(tmp_path, TWO_CLASSES)
    expected = epoch_of(root, workers=0, epoch=2, before=2)
    for workers, before in ((0, 0), (1, 1), (2, 0)):
        found = epoch_of(root, workers, 2, before)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    other = epoch_of(root, 0, 3, 3)
    assert not any(torch.equal(a, b) for a, b in zip(expected, other))


def test_loading_draws_nothing_from_the_global_generators(tmp_path):
    _, data = folder_data(write_images(tmp_path, TWO_CLASSES))
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    list(data.train), list(data.held_out)
    assert states[0] == random.getstate() and np.array_equal(states[1], np.random.get_state()[1])
    assert torch.equal(states[2], torch.get_rng_state())


# transforms


def kinds(transform) -> list[str]:
    return [type(step).__name__ for step in transform.transforms]


def test_published_training_transform():
    config, _ = config_of()
    assert kinds(train_transform(config)) == [
        "RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment",
        "MaybeToTensor", "Normalize", "RandomErasing",
    ]  # fmt: skip
    config.DATA.IMG_SIZE = 32
    steps = train_transform(config).transforms
    assert isinstance(steps[1], PaddedCrop) and steps[1].size == (32, 32) and steps[1].padding == 4
    config.AUG.AUTO_AUGMENT, config.AUG.REPROB = "none", 0.0
    assert kinds(train_transform(config)) == [
        "Resize",
        "PaddedCrop",
        "RandomHorizontalFlip",
        "ColorJitter",
        "MaybeToTensor",
        "Normalize",
    ]


def test_other_training_transforms():
    config, _ = config_of("AUG.AUTO_AUGMENT", "3a", "AUG.COLOR_JITTER", 0.3, "AUG.CROP_MODE", "src", "AUG.REPROB", 0.0)
    steps = train_transform(config).transforms
    assert kinds(train_transform(config)) == [
        "Resize", "RandomCrop", "RandomHorizontalFlip", "AutoAugment", "ColorJitter", "MaybeToTensor", "Normalize",
    ]  # fmt: skip
    assert steps[0].size == 224 and steps[1].padding == 4 and steps[1].padding_mode == "reflect"
    assert [[op.name for op in choice] for choice in steps[3].policy] == [
        ["Solarize"], ["Desaturate"], ["GaussianBlurRand"],
    ]  # fmt: skip
    config.AUG.AUTO_AUGMENT, config.AUG.CROP_MODE = "none", "rkrc"
    config.AUG.VFLIP, config.AUG.GRAYSCALE_PROB, config.AUG.BLUR_PROB = 0.5, 0.2, 0.1
    config.AUG.COLOR_JITTER, config.AUG.COLOR_JITTER_PROB = [0.4, 0.4, 0.2, 0.1], 0.8
    assert kinds(train_transform(config)) == [
        "ResizeKeepRatio", "CenterCropOrPad", "RandomHorizontalFlip", "RandomVerticalFlip", "RandomApply",
        "RandomGrayscale", "RandomApply", "MaybeToTensor", "Normalize",
    ]  # fmt: skip
    config.AUG.COLOR_JITTER, config.AUG.HFLIP, config.AUG.VFLIP = 0.0, 0.0, 0.0
    config.AUG.GRAYSCALE_PROB = config.AUG.BLUR_PROB = 0.0
    assert kinds(train_transform(config)) == ["ResizeKeepRatio", "CenterCropOrPad", "MaybeToTensor", "Normalize"]
    config.AUG.ENABLE = False
    assert kinds(train_transform(config)) == kinds(evaluation_transform(config))


def test_padded_crop_takes_the_crops_of_torchvision_as_often():
    image = Image.fromarray(np.random.default_rng(0).integers(1, 255, (5, 7), dtype=np.uint8))
    ours, theirs = PaddedCrop((5, 7), 1), transforms.RandomCrop((5, 7), padding=1)
    counts = [Counter(crop(image).tobytes() for _ in range(900)) for crop in (ours, theirs)]
    assert counts[0].keys() == counts[1].keys() and len(counts[0]) == 9 and min(counts[0].values()) > 60


def test_published_validation_transform():
    config, _ = config_of()
    resize, crop = evaluation_transform(config).transforms[:2]
    assert resize.size == 256 and crop.size == (224, 224)
    config.TEST.CROP = False
    assert kinds(evaluation_transform(config)) == ["Resize", "ToTensor", "Normalize"]
    config.TEST.CROP, config.TEST.CROP_RATIO = True, 1.0
    assert evaluation_transform(config).transforms[0].size == 224
    config.DATA.IMG_SIZE = 32
    assert evaluation_transform(config).transforms[0].size == (32, 32)


def test_a_rectangular_input_keeps_the_proportions():
    config, _ = config_of("DATA.IMG_SIZE", [64, 128])
    resize, crop = evaluation_transform(config).transforms[:2]
    for height, width in ((100, 100), (50, 300), (640, 1280)):
        found = np.asarray(resize(Image.new("L", (width, height)))).shape
        assert found[0] / found[1] == pytest.approx(height / width, rel=0.02)
        assert found[0] >= 73 and found[1] >= 146 and (found[0] == 73 or found[1] == 146)
    assert crop.size == (64, 128)


@pytest.mark.parametrize("size", [[40, 24], [16, 32], 48])
@pytest.mark.parametrize(
    ("channels", "policy"),
    [(1, "none"), (3, "none"), (4, "none"), (1, "rand-m9-mstd0.5-inc1"), (3, "rand-m9-mstd0.5-inc1"), (3, "3a")],
)
@pytest.mark.parametrize("crop", ["rrc", "src"])
def test_rectangular_gray_and_four_channel_inputs(tmp_path, size, channels, policy, crop):
    opts = ["AUG.CROP_MODE", crop]
    opts += ["MODEL.VSSM.IN_CHANS", channels, "DATA.MEAN", [0.5] * channels, "DATA.STD", [0.5] * channels]
    _, data = folder_data(write_images(tmp_path, TWO_CLASSES), *opts, "DATA.IMG_SIZE", size, "AUG.AUTO_AUGMENT", policy)
    height, width = (size, size) if isinstance(size, int) else size
    for batches in (data.train, data.held_out):
        assert next(iter(batches))[0].shape == (4, channels, height, width)


def test_batched_tensor_steps_equal_the_transform_of_each_image(tmp_path):
    gray = ["MODEL.VSSM.IN_CHANS", 1, "DATA.MEAN", [0.3], "DATA.STD", [0.4]]
    config, stated = config_of("DATA.DATASET", "digits", "DATA.IMG_SIZE", 16, "DATA.BATCH_SIZE", 5, *gray)
    data = build_data(config, stated, World())
    images, _ = next(iter(data.held_out))
    source, transform = data.held_out.dataset.source, evaluation_transform(config)
    assert torch.equal(images, torch.stack([transform(source.load(index)) for index in range(5)]))
    before, after = split_transform(transform)
    assert kinds(before) == ["Resize"] and kinds(after) == ["Normalize"]
