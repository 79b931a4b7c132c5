"""Zip and tar archives, shards and lists: the images of the folder they were made from, and faults by rule (11)."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from classification.archives import Archive, SourceFailed
from classification.config import load_config
from classification.sources import open_source
from classification.world import World
from classification.zip_images import CachedImages
from tests.classification.marked_images import encoded, marked, numbers, plain_data, write_marked
from vmamba.errors import UserError

COUNTS = {"cat": 3, "dog": 5}
LABELS = [0] * 3 + [1] * 5


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_marked(tmp_path / "folder", COUNTS)


def members(root: Path, split: str = "train") -> list[tuple[str, bytes]]:
    """The images of a split as (name relative to it, content)."""
    files = sorted((root / split).glob("*/*"))
    return [(str(file.relative_to(root / split)), file.read_bytes()) for file in files]


def write_zip(path: Path, content: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in content:
            file.writestr(name, data)
    return path


def write_tar(path: Path, content: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:
        for name, data in content:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def opened(root: Path, *opts, train: bool = True, world: World | None = None):
    config, _ = load_config(opts=[str(o) for o in ("DATA.DATA_PATH", root, *opts)])
    return open_source(config, train, world)


def assert_same(source, folder: Path, classes=("cat", "dog")) -> None:
    """The images, labels and classes of `source` are those of the folder."""
    expected = opened(folder)
    assert source.classes == list(classes) and source.labels.tolist() == expected.labels.tolist() == LABELS
    for index in range(len(LABELS)):
        assert np.array_equal(np.asarray(source.load(index)), np.asarray(expected.load(index)))


# zip


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("cache", ["no", "part", "full"])
def test_a_zip_holds_what_the_folder_holds(folder, tmp_path, method, cache):
    names = [("__MACOSX/cat/._00.png", b"junk"), ("train/README.txt", b"hello")]
    packed = [(f"train/{name}", data) for name, data in members(folder)]
    write_zip(tmp_path / "zips" / "train.zip", names + packed[::-1], method)
    source = opened(tmp_path / "zips", "DATA.ZIP_MODE", True, "DATA.CACHE_MODE", cache)
    assert_same(source, folder)
    assert source.name(3) == f"{tmp_path}/zips/train.zip: train/dog/03.png"
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - what a spawned loader process receives
    assert_same(again, folder)


def test_the_published_list_beside_a_zip(folder, tmp_path):
    root = tmp_path / "zips"
    for split in ("train", "val"):
        content = members(folder, split)
        write_zip(root / f"{split}.zip", content)
        lines = [f"{name}\t{label}" for (name, _), label in zip(content, LABELS)]
        (root / f"{split}_map.txt").write_text("\n".join(lines) + "\n")
    assert_same(opened(root, "DATA.ZIP_MODE", True), folder, classes=("0", "1"))
    (root / "classes.txt").write_text("cat\ndog\n")
    assert_same(opened(root, "DATA.ZIP_MODE", True), folder)
    data = plain_data(root, "DATA.ZIP_MODE", True, "DATA.CACHE_MODE", "full", "DATA.NUM_WORKERS", 2)
    assert numbers(data.held_out) == [[0, 1, 2, 3], [4, 5, 6, 7]] and data.classes == ["cat", "dog"]
    (root / "val_map.txt").write_text("cat/99.png\t0\n")
    with pytest.raises(UserError, match="val_map.txt lists cat/99.png, which val.zip does not hold"):
        opened(root, "DATA.ZIP_MODE", True, train=False)


def test_a_cached_part_is_what_its_process_trains_on(folder, tmp_path):
    for split in ("train", "val"):
        write_zip(tmp_path / f"{split}.zip", members(folder, split))
    seen: list[int] = []
    for rank in range(2):
        world = World(rank, 2)
        data = plain_data(tmp_path, "DATA.ZIP_MODE", True, "DATA.BATCH_SIZE", 2, world=world)
        source = data.train.dataset.source
        assert isinstance(source, CachedImages)
        os.truncate(tmp_path / "train.zip", 0)  # only the memory can answer now
        source.members.archive._identity = source.members.archive._look()
        orders = []
        for epoch in (0, 1, 0):
            data.train.sampler.set_epoch(epoch)
            orders.append([index for batch in data.train.sampler for index in batch[1:]])
            assert [source.load(i).getpixel((0, 0))[0] // 8 for i in orders[-1]] == orders[-1]
        assert orders[0] == orders[2] and set(orders[0]) == set(range(rank, 8, 2))
        seen += orders[0]
        write_zip(tmp_path / "train.zip", members(folder))
    assert sorted(seen) == list(range(8))


@pytest.mark.parametrize("cache", ["no", "full"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_zip_member_is_a_bad_image(folder, tmp_path, method, cache):
    for split in ("train", "val"):
        path = write_zip(tmp_path / f"{split}.zip", members(folder, split), method)
    with zipfile.ZipFile(path) as file:
        info = file.infolist()[2]
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len(info.filename) + 20] ^= 255
    path.write_bytes(content)
    data = plain_data(tmp_path, "DATA.ZIP_MODE", True, "DATA.CACHE_MODE", cache, folder=tmp_path)
    assert numbers(data.held_out) == [[0, 1, 3], [4, 5, 6, 7]]
    assert f"val\t{path}: cat/02.png\tthe zip member is damaged: " in (tmp_path / "bad_samples.txt").read_text()
    with pytest.raises(UserError, match="val.zip: cat/02.png: the zip member is damaged"):
        numbers(plain_data(tmp_path, "DATA.ZIP_MODE", True, "DATA.MAX_BAD", 0).held_out)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("how", ["renamed over", "written over", "removed"])
def test_an_archive_replaced_during_the_run_ends_it(folder, tmp_path, how, workers):
    for split in ("train", "val"):
        path = write_zip(tmp_path / f"{split}.zip", members(folder, split))
    data = plain_data(tmp_path, "DATA.ZIP_MODE", True, "DATA.CACHE_MODE", "no", "DATA.NUM_WORKERS", workers)
    assert numbers(data.held_out) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    if how == "removed":
        path.unlink()
    elif how == "renamed over":
        write_zip(tmp_path / "new.zip", members(folder, "val")[::-1]).rename(path)
    else:
        content = path.read_bytes()
        path.write_bytes(content)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    with pytest.raises(UserError, match="val.zip was replaced or removed while the run read it; put the old") as error:
        numbers(data.held_out)
    assert "\n" not in str(error.value)


def test_faults_of_whole_archives_are_one_line(folder, tmp_path):
    def refused(message: str, *opts) -> None:
        with pytest.raises(UserError, match=message) as error:
            opened(tmp_path, *opts)
        assert "\n" not in str(error.value)

    zipped = ("DATA.ZIP_MODE", True)
    refused("there is no file .*train.zip, the archive of images that zip mode reads", *zipped)
    whole = write_zip(tmp_path / "train.zip", members(folder)).read_bytes()
    (tmp_path / "train.zip").write_bytes(whole[:-30])
    refused("train.zip is no complete zip archive .*; copy it again", *zipped)
    write_zip(tmp_path / "train.zip", [("readme.txt", b"x")])
    refused("train.zip holds no images; expected CLASS/IMAGE.jpg inside, or train_map.txt beside it", *zipped)
    write_zip(tmp_path / "train.zip", [("a.png", b"x")])
    refused("the image a.png lies in no class folder", *zipped)
    refused(r"there is no .*train.tar and no .*train/\*.tar; DATA.TRAIN_SPLIT", "DATA.DATASET", "tar")
    whole = write_tar(tmp_path / "train.tar", members(folder)).read_bytes()
    for size in (3 * 1024, 3 * 1024 - 100, 300, 0):  # an image takes a block for its header and one for itself
        (tmp_path / "train.tar").write_bytes(whole[:size])
        refused("train.tar (is no complete, uncompressed tar archive|is cut short).*; copy it", "DATA.DATASET", "tar")
    write_tar(tmp_path / "train.tar", members(folder), "w:gz")
    refused("train.tar is no complete, uncompressed tar archive", "DATA.DATASET", "tar")
    (tmp_path / "train.zip").unlink()
    (tmp_path / "train.zipp").write_bytes(b"")
    refused("Did you mean 'train.zipp'", *zipped)


def test_an_archive_tells_a_replaced_file_and_an_early_end(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    archive = Archive(tmp_path / "a")
    assert archive.read(3, 4) == b"3456"
    with pytest.raises(OSError, match="a ends early"):
        archive.read(8, 4)
    (tmp_path / "b").write_bytes(b"0123456789")
    os.replace(tmp_path / "b", tmp_path / "a")
    with pytest.raises(SourceFailed, match="was replaced or removed"):
        archive.read(3, 4)


# tar


@pytest.mark.parametrize("layout", ["one archive", "with a folder around", "an archive per class", "parts"])
def test_tar_archives_hold_what_the_folder_holds(folder, tmp_path, layout):
    root, content = tmp_path / "tars", members(folder)
    if layout == "one archive":
        write_tar(root / "train.tar", [(f"./{name}", data) for name, data in content[::-1]])
    elif layout == "with a folder around":
        write_tar(root / "train.tar", [(f"set/train/{name}", data) for name, data in content])
    elif layout == "parts":
        write_tar(root / "train" / "part0.tar", content[::2])
        write_tar(root / "train" / "part1.tar", content[1::2])
    else:
        for name in COUNTS:
            inside = [(file.partition("/")[2], data) for file, data in content if file.startswith(name)]
            write_tar(root / "train" / f"{name}.tar", inside)
    source = opened(root, "DATA.DATASET", "tar")
    assert_same(source, folder)
    assert ".tar: " in source.name(0)
    assert_same(pickle.loads(pickle.dumps(source)), folder)  # noqa: S301 - what a spawned loader process receives


def shard(content: list[tuple[str, bytes]], first: int) -> list[tuple[str, bytes]]:
    files = []
    for number, (name, data) in enumerate(content, first):
        files += [(f"{number:05d}.png", data), (f"{number:05d}.cls", b"%d" % name.startswith("dog"))]
        files.append((f"{number:05d}.json", b"{}"))
    return files


@pytest.mark.parametrize("split", ["train", "set-train-{000..001}.tar"])
def test_shards_of_webdataset(folder, tmp_path, split):
    content = members(folder)
    write_tar(tmp_path / "set-train-000.tar", shard(content[:4], 0))
    write_tar(tmp_path / "set-train-001.tar", shard(content[4:], 0))
    write_tar(tmp_path / "set-val-000.tar", shard(members(folder, "val"), 0))
    shards = ("DATA.DATASET", "shards", "DATA.TRAIN_SPLIT", split)
    assert_same(opened(tmp_path, *shards), folder, classes=("0", "1"))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert_same(opened(tmp_path, *shards), folder)
    data = plain_data(tmp_path, *shards, "DATA.NUM_WORKERS", 1)
    assert numbers(data.held_out) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sorted(sum(numbers(data.train), [])) == list(range(8))


def test_faults_of_shards_are_one_line(folder, tmp_path):
    def refused(message: str, files: list[tuple[str, bytes]]) -> None:
        write_tar(tmp_path / "train-0.tar", files)
        with pytest.raises(UserError, match=message):
            opened(tmp_path, "DATA.DATASET", "shards")

    image = encoded(marked(1))
    refused(r"train-0.tar: b.png has no file of that name with the ending .cls", [("a.cls", b"0"), ("b.png", image)])
    refused(r"train-0.tar: a.cls holds no class number but b'cat'", [("a.cls", b"cat"), ("a.png", image)])
    refused("train-0.tar holds no images", [("a.cls", b"0")])
    for split, message in (("/tmp/a.tar", "are named by an absolute path"), ("b-{0..3}.tar", "there is no .*/b-0.tar")):
        with pytest.raises(UserError, match=message):
            opened(tmp_path, "DATA.DATASET", "shards", "DATA.TRAIN_SPLIT", split)
    (tmp_path / "classes.txt").write_text("cat\n")
    refused("class number 1 is beyond the 1 names of classes.txt", [("a.cls", b"1"), ("a.png", image)])


# lists


def test_lists_of_imagenet_22k(folder, tmp_path):
    for split in ("train", "val"):
        entries = [[f"{split}/{name}", 21840 if name.startswith("dog") else 7] for name, _ in members(folder, split)]
        (folder / f"ILSVRC2011fall_whole_map_{split}.txt").write_text(json.dumps(entries))
    data = plain_data(folder, "DATA.DATASET", "imagenet22K")
    assert len(data.classes) == 21841 and data.train.dataset.source.labels.tolist() == [7] * 3 + [21840] * 5
    assert numbers(data.held_out) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_lists_of_paths_and_numbers(folder):
    for split in ("train", "val"):
        lines = [f"{split}/{name}\t{label}" for (name, _), label in zip(members(folder, split), LABELS)]
        (folder / f"{split}_map.txt").write_text("\r\n".join(lines))
    source = opened(folder, "DATA.DATASET", "list")
    assert source.labels.tolist() == LABELS and source.classes == ["0", "1"] and source.load(7).size == (12, 12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png 3\n", "train_map.txt, line 1: expected 'path TAB class number', not 'a.png 3'"),
        ("a.png\t0\nb.png\t-1\n", "train_map.txt, line 2: expected"),
        ("", "train_map.txt lists no image"),
        ('[["a.png", 0], ["b.png"]]', r"train_map.txt, entry 2: expected \[path, class number\], not"),
        ('[["a.png", 0', "train_map.txt is no complete JSON list"),
        ("a.png\t0\nb.png\t2\n", "train_map.txt, image 2: class number 2 does not lie between 0 and 1"),
    ],
)
def test_a_list_that_is_wrong_names_the_line(tmp_path, text, message):
    (tmp_path / "train_map.txt").write_text(text)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=message):
        opened(tmp_path, "DATA.DATASET", "list")


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("a\nb\na\n", "names 'a' twice")])
def test_class_names_that_are_wrong(tmp_path, text, message):
    (tmp_path / "train_map.txt").write_text("a.png\t0\n")
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=f"classes.txt {message}"):
        opened(tmp_path, "DATA.DATASET", "list")
