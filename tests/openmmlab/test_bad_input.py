"""What is wrong is one line before training begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from vmamba.errors import UserError
from vmamba.openmmlab import train
from vmamba.openmmlab.checks import check_images, image_problem
from vmamba.openmmlab.configs import read_config
from vmamba.openmmlab.predict import pictures_of

from .shrunk import CONFIGS, shrunk, small_scale

TINY = CONFIGS / "detection" / "vssm1" / "mask_rcnn_vssm_fpn_coco_tiny.py"


def refusal(config: Path, capsys, *flags: str) -> str:
    """What training says before it gives up; it must not begin."""
    assert train.main([str(config), *small_scale(), *flags]) == 2
    error = capsys.readouterr().err
    assert not list(config.parent.glob("work/*.pth"))
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.backbone.pretrained=nowhere.pth", "there is no checkpoint nowhere.pth"),
        ("model.backbone.drop_path=0.1", "unknown argument 'drop_path'. Did you mean 'drop_path_rate'?"),
        ("model.backbone.type=MM_VSMM", "MM_VSMM is not in the mmdet::model registry"),
        ("train_dataloadr.batch_size=1", "there is no 'train_dataloadr'. Did you mean 'train_dataloader'?"),
        ("train_dataloader.dataset.ann_file=a.json", "train_dataloader.dataset.ann_file: there is no annotation file"),
        ("val_evaluator.ann_file=b.json", "val_evaluator.ann_file: there is no annotation file b.json"),
        ("train_dataloader.dataset.data_prefix.img=trian2017", "there is no folder"),
        ("model.roi_head.mask_head.num_classes=3", "roi_head.mask_head of the model is for 3; set num_classes"),
        ("optim_wrapper.optimizer.lrr=1", "unexpected keyword argument 'lrr'"),
        ("param_scheduler.1.milestone=1", "unexpected keyword argument 'milestone'"),
    ],
)
def test_a_wrong_setting(change, message, coco, tmp_path, capsys):
    assert message in refusal(shrunk(tmp_path, TINY, coco), capsys, change)


def test_a_missing_or_misspelt_configuration(tmp_path, capsys):
    assert train.main([str(TINY.with_name("mask_rcnn_vssm_fpn_coco_tiney.py"))]) == 2
    assert "Did you mean 'mask_rcnn_vssm_fpn_coco_tiny" in capsys.readouterr().err
    (tmp_path / "typo.py").write_text("default_scope = 'mmdet'\noptim_wraper = dict()\nmy_helper = 1\n")
    with pytest.raises(UserError, match="'optim_wraper' has no effect. Did you mean 'optim_wrapper'"):
        read_config(tmp_path / "typo.py")
    (tmp_path / "broken.py").write_text("model = dict(\n")
    with pytest.raises(UserError, match="broken.py cannot be read: .*never closed"):
        read_config(tmp_path / "broken.py")


def test_classes_that_the_annotations_do_not_have(coco, tmp_path, capsys):
    copy = shutil.copytree(coco, tmp_path / "coco")
    path = copy / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["categories"] = content["categories"][:5]
    path.write_text(json.dumps(content))
    assert "of the 80 classes of its metainfo" in refusal(shrunk(tmp_path, TINY, copy), capsys)


def test_a_broken_image(coco, tmp_path, capsys):
    copy = shutil.copytree(coco, tmp_path / "coco")
    image = copy / "train2017" / "000000000002.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    config = shrunk(tmp_path, TINY, copy)
    assert f"train_dataloader: the image {image} cannot be read (" in refusal(config, capsys)
    image.write_bytes(b"")
    assert image_problem(image) == "is empty"
    image.write_bytes(whole)
    assert image_problem(image) == "" == image_problem(image, decode=True)
    image.unlink()
    assert "is missing" in refusal(config, capsys)


def test_a_checkpoint_to_resume_from_that_is_not_there(coco, tmp_path, capsys):
    config = shrunk(tmp_path, TINY, coco)
    assert train.main([str(config), "--resume", str(tmp_path / "epoch_1.pth")]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err


class Segments:
    """A data set of one image and its label map."""

    def __init__(self, image: Path, label: Path) -> None:
        self.info = {"img_path": str(image), "seg_map_path": str(label)}

    def __len__(self) -> int:
        return 1

    def get_data_info(self, index: int) -> dict:
        return self.info


def test_label_maps_are_looked_at_too(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "image.png")
    check_images(Segments(tmp_path / "image.png", tmp_path / "image.png"), "train_dataloader")
    with pytest.raises(UserError, match="train_dataloader: the image .*labels.png is missing"):
        check_images(Segments(tmp_path / "image.png", tmp_path / "labels.png"), "train_dataloader")


def test_no_picture_is_written_over_another_or_over_an_image(tmp_path):
    images = [tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg"]
    assert [path.name for path in pictures_of(images, tmp_path / "out").values()] == ["1.png", "1_1.png"]
    with pytest.raises(UserError, match="1.png would be written over"):
        pictures_of([tmp_path / "1.png"], tmp_path)
