"""The nuclei's data sets, from photographs and outlines to what readers of COCO and ADE20K see; the baselines."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from tests.openmmlab.nuclei_wheel import photograph, write_wheel
from vmamba.errors import UserError
from vmamba.openmmlab import montage, nuclei, nuclei_baselines


def test_a_photograph_is_cut_into_tiles_with_their_part_of_the_nuclei():
    image, polygons, labels = photograph()
    first, second, third = nuclei.cut("p", image, polygons, labels)
    assert [tile.split for tile in (first, second, third)] == ["train", "val", "train"]
    assert [tile.name for tile in (first, second, third)] == ["p_0_0", "p_0_1", "p_0_2"]
    assert np.array_equal(np.asarray(second.image), np.asarray(image)[:, 250:500])
    assert [nucleus.label for nucleus in first.nuclei] == [0, 1]
    assert first.nuclei[1].bounds == (230, 100, 250, 110) and first.nuclei[1].area == 200
    assert [nucleus.bounds for nucleus in second.nuclei] == [(0, 100, 20, 110), (50, 30, 70, 50)], (
        "the sliver is left out"
    )
    assert [nucleus.label for nucleus in third.nuclei] == [2, 1]
    marked = np.asarray(nuclei.label_map(second))
    assert marked[105, 10] == 2 and marked[40, 60] == 3 and marked[0, 0] == 0 and set(np.unique(marked)) == {0, 2, 3}


def test_the_trees_are_read_as_written_and_made_once(tmp_path, capsys):
    out = tmp_path / "nuclei"
    arguments = ["--out", str(out), "--wheel", str(write_wheel(tmp_path / "w.whl"))]
    assert nuclei.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == ["train: 4 tiles, 8 nuclei", "val: 2 tiles, 4 nuclei"]
    assert sorted(path.name for path in out.iterdir()) == ["coco", "mmseg"]
    coco = COCO(str(out / "coco" / "annotations" / "instances_train.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(nuclei.CLASSES)
    for record in coco.loadImgs(coco.getImgIds()):
        labels = np.asarray(Image.open(out / "mmseg" / "annotations" / "training" / record["file_name"]))
        pixels = np.asarray(Image.open(out / "mmseg" / "images" / "training" / record["file_name"]))
        assert np.array_equal(pixels, np.asarray(Image.open(out / "coco" / "train" / record["file_name"])))
        for nucleus in coco.loadAnns(coco.getAnnIds(record["id"])):
            inside = coco.annToMask(nucleus).astype(bool)
            assert abs(inside.sum() - nucleus["area"]) <= 30 and (labels[inside] == nucleus["category_id"]).mean() > 0.9
    with pytest.raises(UserError, match="is there already; remove it"):
        nuclei.make_trees(out, tmp_path / "w.whl")


def test_a_wrong_wheel_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "wrong.whl").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"wrong.whl: .*it is not the wheel of histolytics==0.3.0"):
        nuclei.make_trees(tmp_path / "out", tmp_path / "wrong.whl")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_baselines_look_at_no_image(tmp_path, capsys):
    nuclei.make_trees(tmp_path, write_wheel(tmp_path / "w.whl"))
    maps = [np.asarray(Image.open(path)) for path in (tmp_path / "mmseg" / "annotations" / "validation").glob("*.png")]
    background = np.mean([(labels == 0).mean() for labels in maps])
    assert nuclei_baselines.majority_miou(tmp_path / "mmseg") == pytest.approx(background / 3), "3 classes are there"
    boxes = nuclei_baselines.majority_boxes(tmp_path / "coco")
    assert len(boxes) == 200 and {box["category_id"] for box in boxes} == {2}
    annotations = tmp_path / "coco" / "annotations" / "instances_val.json"
    truth = COCO(str(annotations))
    right = [dict(box, score=1.0) for box in truth.loadAnns(truth.getAnnIds())]
    assert nuclei_baselines.box_ap50(annotations, right) == pytest.approx(1.0)
    capsys.readouterr()
    assert nuclei_baselines.main(["--data", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("majority: mIoU 33.0%")
    assert nuclei_baselines.box_ap50(annotations, boxes) < 0.2


def test_a_montage_is_as_wide_as_asked(tmp_path):
    for i, size in enumerate([(40, 20), (80, 80)]):
        Image.new("RGB", size, (255 * i, 0, 0)).save(tmp_path / f"{i}.png")
    whole = tmp_path / "whole.png"
    assert montage.main([str(tmp_path / "0.png"), str(tmp_path / "1.png"), "--out", str(whole), "--width", "20"]) == 0
    joined = Image.open(whole).convert("RGB")
    assert joined.size == (20, 30) and joined.getpixel((5, 5)) == (0, 0, 0) and joined.getpixel((5, 20)) == (255, 0, 0)
    with pytest.raises(UserError, match="none.png"):
        montage.montage([tmp_path / "none.png"], 20)
