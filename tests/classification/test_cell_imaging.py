"""JUMP-CP from a local folder: labels of wells, the split, arrays as images, their augmentation, recipes and a run."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from classification.arguments import parse
from classification.cell_transforms import (
    CentralCrop,
    RandomDefocus,
    RandomHoles,
    RandomPaddedCrop,
    RandomTurn,
    soft_disk,
)
from classification.checks import ignored_settings
from classification.decoding import UnreadableImage
from classification.jump_cp import split_rows, well_labels
from classification.optim import build_optimizer
from classification.schedule import build_schedule, present_rate
from classification.sources import open_source
from classification.world import World
from vmamba.errors import UserError
from vmamba.models import ChannelVim, FastChannelVim, FastChannelVim2d
from vmamba.models.channelvim_variants import default_cfgs
from vmamba.models.from_config import model_from_config
from vmamba.weights import load_checkpoint

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "cell_imaging"
# file: (class, parameters, pixels of a patch, pooling)
PUBLISHED = {
    "fastchannelvim_small_16": (FastChannelVim, 25_316_129, 16, "mean"),
    "fastchannelvim_small_8": (FastChannelVim, 25_468_193, 8, "mean"),
    "fastchannelvim_small_16_max": (FastChannelVim, 25_316_129, 16, "max"),
    "fastchannelvim_small_8_max": (FastChannelVim, 25_468_193, 8, "max"),
    "fastchannelvim2d_small_16": (FastChannelVim2d, 25_316_129, 16, "mean"),
    "fastchannelvim2d_small_8": (FastChannelVim2d, 25_468_193, 8, "mean"),
    "channelvim_small_16": (ChannelVim, 25_316_513, 16, None),
    "channelvim_small_8": (ChannelVim, 25_468_577, 8, None),
}
# two wells of the solvent, which has no sample, two of each compound; P24 is on no platemap
WELLS = ["A01", "A02", "B01", "B02", "C01", "C02", "D01", "D02", "P24"]
PLATEMAP = {
    "well_position": ["A01", "A02", "B01", "B02", "C01", "C02", "D01", "D02"],
    "broad_sample": [None, None, "BRD-1", "BRD-1", "BRD-2", "BRD-2", "BRD-3", "BRD-3"],
}
METADATA = {
    "broad_sample": ["BRD-9", "BRD-2", None, "BRD-3", "BRD-1"],
    "pert_iname": ["unused", "b", "DMSO", "c", "a"],
    "target": ["ZZZ", "EGFR", None, "EGFR", "BRD4"],
}


def write_text(path: Path, table: dict[str, list]) -> None:
    rows = [table, *zip(*table.values())]
    path.write_text("".join("\t".join("" if cell is None else str(cell) for cell in row) + "\n" for row in rows))


def write_parquet(path: Path, table: dict[str, list]) -> None:
    pa = pytest.importorskip("pyarrow", reason="the package pyarrow is not installed")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(table), path)


def write_tree(root: Path, count: int = 45, size: int = 12, above: str = "", write=write_text) -> Path:
    """A plate of `count` images in turn from each of the wells, of 8 channels; a well has a gray value of its own."""
    tables = root / "platemap_and_metadata"
    tables.mkdir(parents=True)
    write(tables / "JUMP-Target-1_compound_platemap.tsv", PLATEMAP)
    write(tables / "JUMP-Target-1_compound_metadata.tsv", METADATA)
    (root / "images").mkdir()
    wells = [WELLS[number % len(WELLS)] for number in range(count)]
    for number, well in enumerate(wells):
        image = np.full((8, size, size), 20 * (1 + WELLS.index(well) // 2), np.uint8)
        np.save(root / "images" / f"{number}.npy", image + np.arange(8, dtype=np.uint8)[:, None, None])
    paths = [f"{above}images/{number}.npy" for number in range(count)]
    write(root / "BR00116991.pq", {"ID": list(range(count)), "path": paths, "well_loc": wells})
    return root


def opened(root: Path, split: str = "train", name: str = "jumpcp/BR00116991"):
    opts = ["DATA.DATASET", name, "DATA.TRAIN_SPLIT", split, "DATA.DATA_PATH", str(root)]
    return open_source(parse(["--cfg", str(RECIPES / "fastchannelvim_small_16.yaml"), "--opts", *opts])[0], train=True)


# recipes


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_the_published_one(name):
    config, stated = parse(["--cfg", str(RECIPES / f"{name}.yaml")])
    assert ignored_settings(config, stated) == []
    kind, parameters, patch, pooling = PUBLISHED[name]
    network = model_from_config(config, device="meta", num_classes=161)
    assert config.MODEL.NAME == name, "of which the run folder is named: no two recipes continue each other's runs"
    assert type(network) is kind and sum(p.numel() for p in network.parameters()) == parameters
    assert network.patch_embed.patch_size == patch and network.in_chans == 8 and network.hcs
    assert pooling is None or network.layers[0].mixer.collapse_method == pooling
    cfg = default_cfgs["fastchannelvim_small_16"].default
    assert np.multiply(config.DATA.MEAN, 255) == pytest.approx(cfg.mean, rel=1e-7)
    assert np.multiply(config.DATA.STD, 255) == pytest.approx(cfg.std, rel=1e-7)
    assert (config.DATA.DATASET, config.DATA.IMG_SIZE, config.SEED) == ("jumpcp/BR00116991", 224, 0)
    assert (config.AUG.MIXUP, config.AUG.CUTMIX, config.MODEL.LABEL_SMOOTHING) == (0, 0, 0)
    cells = config.AUG.CELLS
    assert (cells.PAD_TO, cells.HOLES, cells.HOLE_SIZE) == (256, 10, 10) and config.MODEL.DROP_PATH_RATE == 0.05
    assert (config.TRAIN.WEIGHT_DECAY, config.TRAIN.WEIGHT_DECAY_END) == (0.04, 0.4)
    assert config.TRAIN.OPTIMIZER.NAME == "adamw" and config.TRAIN.EPOCHS == 100


def test_no_recipe_is_forgotten():
    assert {path.stem for path in RECIPES.iterdir()} == set(PUBLISHED)


def test_the_rate_of_the_recipes_rises_from_0_in_10_epochs_and_falls_to_1e_6():
    config, _ = parse(["--cfg", str(RECIPES / "fastchannelvim_small_16.yaml")])
    optimizer = build_optimizer(config, torch.nn.Linear(2, 2), World(0, 8))
    schedule = build_schedule(config, optimizer, 7, 1.0)
    rates = []
    for update in (0, 35, 70, 385, 700):
        schedule.step_update(update)
        rates.append(present_rate(optimizer))
    assert rates == pytest.approx([0, 5e-4, 1e-3, (1e-3 + 1e-6) / 2, 1e-6])


# labels, split, paths


def test_wells_are_labelled_by_the_target_of_their_sample(tmp_path):
    labels, classes = well_labels(write_tree(tmp_path))
    assert classes == ["control", "EGFR", "BRD4"], "in the order of the metadata, those without a well left out"
    assert labels == {"A01": 0, "A02": 0, "B01": 2, "B02": 2, "C01": 1, "C02": 1, "D01": 1, "D02": 1}


def test_the_split_is_60_20_20_and_always_the_same():
    assert split_rows(10, "train").tolist() == [2, 8, 4, 9, 1, 6]
    assert split_rows(10, "val").tolist() == [7, 3] and split_rows(10, "test").tolist() == [0, 5]
    assert sorted(np.concatenate([split_rows(101, name) for name in ("train", "val", "test")])) == list(range(101))


@pytest.mark.parametrize("above", ["", "s3://a-bucket/jumpcp/", "/elsewhere/"])
@pytest.mark.parametrize("write", [write_text, write_parquet])
def test_images_of_labelled_wells_are_read_and_the_others_counted(tmp_path, above, write):
    source = opened(write_tree(tmp_path, above=above, write=write))
    rows = [row for row in split_rows(45, "train").tolist() if row % 9 != 8]
    assert len(source.labels) == len(rows) < 27 and source.classes == ["control", "EGFR", "BRD4"]
    out = 27 - len(rows)
    note = f"{out} of 27 images of 'train' lie in wells without a label and are left out: P24 ({out})"
    assert out > 0 and source.notes == [note]
    for index, row in enumerate(rows):
        image = source.load(index)
        assert (
            image.shape == (12, 12, 8) and image.dtype == np.uint8 and source.name(index).endswith(f"images/{row}.npy")
        )
        assert image[3, 4].tolist() == [20 * (1 + row % 9 // 2) + channel for channel in range(8)]
        assert source.labels[index] == [0, 0, 2, 2, 1, 1, 1, 1][row % 9]


def test_all_plates_of_a_folder_each_split_by_itself(tmp_path):
    root = write_tree(tmp_path)
    one = opened(root)
    (root / "BR00116992.parquet").write_bytes((root / "BR00116991.pq").read_bytes())
    both = opened(root, name="jumpcp")
    assert both.labels.tolist() == 2 * one.labels.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: root.joinpath("BR00116991.pq").unlink(), "there is no file .*BR00116991.pq, a plate's index"),
        (lambda root: next(root.glob("*/*platemap*")).unlink(), r"there is no \*compound_platemap.\*, here or one"),
        (lambda root: write_text(root / "a_compound_metadata.csv", METADATA), r"2 files are called \*compound_meta"),
        (
            lambda root: write_text(root / "BR00116991.pq", {"paths": ["a"], "well_loc": ["A01"]}),
            "has no column 'path'; its columns are paths, well_loc. Did you mean 'paths'",
        ),
        (lambda root: (root / "BR00116991.pq").write_text("path\twell_loc\nx.npy\n"), "line 2: 1 cells, the header"),
        (
            lambda root: write_text(root / "BR00116991.pq", {"path": ["x/y.npy"], "well_loc": ["A01"]}),
            "names x/y.npy, which is not below .*, nor is any end of that path",
        ),
        (
            lambda root: write_text(root / "BR00116991.pq", {"path": ["images/0.npy"] * 9, "well_loc": ["a1"] * 9}),
            r"no image of .*991, split 'train', lies in a labelled well: a1 \(5\); the tables label A01, A02",
        ),
        (lambda root: (root / "BR00116991.pq").write_bytes(b"\xff\xfe\x00"), "is neither parquet nor UTF-8 text"),
    ],
)  # fmt: skip
def test_faults_of_a_tree_are_one_line(tmp_path, change, message):
    root = write_tree(tmp_path, count=9)
    change(root)
    with pytest.raises(UserError, match=message) as error:
        opened(root)
    assert "\n" not in str(error.value)


def test_a_damaged_parquet_a_missing_package_and_a_wrong_split_are_one_line(tmp_path, monkeypatch):
    root = write_tree(tmp_path, count=9)
    with pytest.raises(UserError, match="has the splits train, val, test, not 'vall'. Did you mean 'val'"):
        opened(root, "vall")
    index = root / "BR00116991.pq"
    index.write_bytes(b"PAR1 and nothing else PAR1")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(
            UserError, match="BR00116991.pq needs the package 'pyarrow'; install it with: pip install pya"
        ):
            opened(root)
    write_parquet(index, {"path": ["images/0.npy"], "well_loc": ["A01"]})
    index.write_bytes(index.read_bytes()[:-30])
    with pytest.raises(UserError, match="BR00116991.pq is no complete parquet file: ") as error:
        opened(root)
    assert "\n" not in str(error.value)


# images


BAD = {
    "other channels": (np.zeros((5, 4, 4), np.uint8), r"its shape is \[5, 4, 4\], not \[8, height, width\]"),
    "one plane": (np.zeros((4, 4), np.uint8), r"its shape is \[4, 4\]"),
    "objects": (np.full((8, 2, 2), None), "allow_pickle|Object arrays"),
    "16 bits": (np.full((8, 2, 2), 40000, np.uint16), "its values lie between 40000 and 40000; expected 0 to 255"),
    "NaN": (np.full((8, 2, 2), np.nan, np.float32), "its values lie between nan and nan"),
    "text": (np.full((8, 2, 2), "a"), "its values are of type <U1"),
}


@pytest.mark.parametrize("kind", [*BAD, "truncated", "empty", "a web page"])
def test_a_file_that_is_no_image_is_skipped_with_its_reason(tmp_path, kind):
    source = opened(write_tree(tmp_path, count=9))
    path = Path(source.name(0))
    content = path.read_bytes()
    files = {
        "truncated": (content[:300], "could only read"),
        "empty": (b"", "EOF"),
        "a web page": (b"<html>", "magic"),
    }
    if kind in files:
        path.write_bytes(files[kind][0])
    else:
        np.save(path, BAD[kind][0], allow_pickle=True)
    with pytest.raises(UnreadableImage, match={**BAD, **files}[kind][1]) as error:
        source.load(0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64, np.int64])
def test_other_numbers_from_0_to_255_are_images_too(tmp_path, dtype):
    source = opened(write_tree(tmp_path, count=9))
    before = source.load(0)
    np.save(source.name(0), before.transpose(2, 0, 1).astype(dtype))
    after = source.load(0)
    assert after.dtype == np.float32 and np.array_equal(after, before)


# augmentation


def picture(height: int = 10, width: int = 10, channels: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_crops_come_from_the_image_and_its_reflection():
    x = picture()
    assert CentralCrop((10, 10))(x).base is x and np.array_equal(CentralCrop((4, 6))(x), x[3:7, 2:8])
    assert np.array_equal(CentralCrop((10, 14))(x)[:, 2:12], x)
    random.seed(0)
    whole = {RandomPaddedCrop((10, 10), 16)(x).tobytes() for _ in range(40)}
    assert len(whole) > 20 and RandomPaddedCrop((4, 4), 1)(x).shape == (4, 4, 8)
    assert RandomPaddedCrop((12, 8), 4)(x).shape == (12, 8, 8)


def test_turns_are_the_five_and_keep_the_channels_together():
    x = picture()
    random.seed(0)
    seen = {np.ascontiguousarray(RandomTurn(1.0)(x)).tobytes() for _ in range(80)}
    expected = [x[:, ::-1], x[::-1], np.rot90(x, 1), np.rot90(x, 2), np.rot90(x, 3)]
    assert seen == {np.ascontiguousarray(turned).tobytes() for turned in expected}
    assert RandomTurn(0.0)(x) is x and {RandomTurn(1.0)(picture(4, 6)).shape for _ in range(20)} == {(4, 6, 8)}


def test_defocus_spreads_a_point_over_a_disk_and_leaves_a_plain_image():
    random.seed(0)
    point = np.zeros((11, 11, 2), np.uint8)
    point[5, 5, 1] = 200
    widths = set()
    for _ in range(20):
        found = RandomDefocus(1.0)(point)
        assert found.shape == point.shape and found[..., 0].max() == 0
        assert found[..., 1].sum() == pytest.approx(200, rel=1e-5) and np.allclose(found[..., 1], found[::-1, :, 1].T)
        widths.add(int((found[5, :, 1] > 0).sum()))
    assert widths == {3, 5, 7}
    assert np.allclose(RandomDefocus(1.0)(np.full((6, 6, 3), 9, np.uint8)), 9) and RandomDefocus(0.0)(point) is point
    disk = soft_disk(2)
    assert disk[0, 0] == 0 and disk[2, 0] == disk[0, 2] > 0 and float(disk.sum()) == pytest.approx(1)


def test_holes_are_black_in_all_channels_and_as_many_as_asked_for():
    random.seed(0)
    x = np.full((40, 40, 3), 7, np.uint8)
    for _ in range(20):
        found = RandomHoles(1.0, 4, 5)(x)
        black = (found == 0).all(axis=2)
        assert 1 <= black.sum() <= 100 and np.array_equal(found[~black], x[~black])
    assert (
        (x == 7).all() and RandomHoles(0.0, 4, 5)(x) is x and RandomHoles(1.0, 1, 90)(picture(2, 2)).shape == (2, 2, 8)
    )


# a run


def test_a_recipe_trains_on_a_small_tree_and_says_what_it_left_out(run_main, tmp_path):
    root = write_tree(tmp_path / "jump")
    good = root / "images" / f"{split_rows(45, 'train')[1]}.npy"
    good.write_bytes(good.read_bytes()[:200])
    small = "MODEL.TIMM.depth 2 MODEL.TIMM.embed_dim 16 MODEL.TIMM.patch_size 4 MODEL.TIMM.img_size 8 DATA.IMG_SIZE 8"
    cells = "AUG.CELLS.PAD_TO 14 AUG.CELLS.HOLE_SIZE 2 DATA.NUM_WORKERS 0 TENSORBOARD False"
    words = ["--cfg", RECIPES / "fastchannelvim_small_16.yaml", "--data-path", root, "--batch-size", 8]
    opts = ["--opts", *small.split(), *cells.split()]
    code, output, errors = run_main(*words, "--epochs", 1, "--warmup-epochs", 0, *opts)
    assert code == 0, errors
    assert "1 process(es) on cpu, float32, 3 classes" in output
    assert len(re.findall(r"images of 'train' lie in wells without a label and are left out: P24", output)) == 1
    assert len(re.findall(r"images of 'val' lie in wells without a label", output)) == 1
    assert f"cannot read the image {good}" in output and "the next one takes its place" in output
    folder = tmp_path / "out" / "fastchannelvim_small_16" / "default"
    stored = load_checkpoint(folder / "best.pth")
    assert stored["class_names"] == ["control", "EGFR", "BRD4"] and (folder / "evaluation" / "worst.png").is_file()
    network = model_from_config(stored["config"])
    network.load_state_dict(stored["model"])
    assert network.eval()(torch.zeros(1, 8, 12, 12)).shape == (1, 3)
    code, output, errors = run_main(*words, "--eval", "--val-split", "test", *opts)
    assert code == 0 and "test images" in output, errors
    code, _, errors = run_main(*words, "--data-path", tmp_path / "jum", *opts)
    assert code == 2 and errors.count("\n") == 1 and "Did you mean 'jump'?" in errors
