"""Mask R-CNN trains, evaluates, resumes and is tested on a tree of COCO's layout, also in two processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader

from vmamba.openmmlab import predict, test, train
from vmamba.openmmlab.configs import read_config
from vmamba.openmmlab.models import open_checkpoint
from vmamba.weights import load_checkpoint
from vmamba.weights.publishing import publish

from .shrunk import CONFIGS, DETECTION, shrunk, small_scale

ROOT = CONFIGS.parent
TINY = CONFIGS / "detection" / "vssm1" / "mask_rcnn_vssm_fpn_coco_tiny.py"


def log_of(work: Path) -> str:
    return "".join(path.read_text() for path in sorted(work.glob("*/*.log")))


def scalars(work: Path) -> list[dict]:
    """Every line of the run's numbers, the runs in order."""
    files = sorted(work.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, coco) -> Path:
    """A folder with small.py and work/, one epoch trained and evaluated."""
    folder = tmp_path_factory.mktemp("run")
    config = shrunk(folder, TINY, coco)
    assert train.main([str(config), *small_scale(), "randomness.seed=0"]) == 0
    return folder


def test_training_and_evaluation(trained):
    work = trained / "work"
    found = scalars(work)
    losses = [line["loss"] for line in found if "loss" in line]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
    assert {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"} <= found[0].keys()
    assert [line["coco/bbox_mAP"] >= 0 and "coco/segm_mAP" in line for line in found if "coco/bbox_mAP" in line] == [
        True
    ]
    saved = load_checkpoint(work / "epoch_1.pth")
    assert saved["meta"]["epoch"] == 1 and "backbone.layers.0.blocks.0.op.A_logs" in saved["state_dict"]


def test_resume_goes_on_where_it_stopped(trained, coco, tmp_path):
    config = shrunk(tmp_path, TINY, coco, epochs=2)
    before = load_checkpoint(trained / "work" / "epoch_1.pth")
    resumed = str(trained / "work" / "epoch_1.pth")
    assert train.main([str(config), "--resume", resumed, *small_scale()]) == 0
    after = load_checkpoint(tmp_path / "work" / "epoch_2.pth")
    assert after["meta"]["epoch"] == 2 and after["meta"]["seed"] == before["meta"]["seed"] == 0
    steps = [next(iter(s["optimizer"]["state"].values()))["step"] for s in (before, after)]
    assert steps == [2, 4] and "resumed epoch: 1, iter: 2" in log_of(tmp_path / "work")
    history = after["message_hub"]["log_scalars"]["train/loss"]
    assert len(history["_log_history"]) == 4, "the history of the first epoch is kept"


def test_testing_finds_what_the_evaluation_found(trained, tmp_path):
    config, checkpoint = str(trained / "small.py"), str(trained / "work" / "epoch_1.pth")
    flags = ["--work-dir", str(tmp_path), "--out", str(tmp_path / "found.pkl"), "--show-dir", str(tmp_path / "seen")]
    assert test.main([config, checkpoint, *flags, *small_scale()]) == 0
    evaluated = next(line for line in scalars(trained / "work") if "coco/bbox_mAP" in line)
    tested = json.loads(next(tmp_path.glob("*/*.json")).read_text())
    for name in ("coco/bbox_mAP", "coco/segm_mAP_50"):
        assert tested[name] == pytest.approx(evaluated[name], abs=1e-3)
    assert (tmp_path / "found.pkl").stat().st_size and len(list((tmp_path / "seen").rglob("*.jpg"))) == 3


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path, capsys):
    weights = load_checkpoint(trained / "work" / "epoch_1.pth")["state_dict"]
    torch.save({"state_dict": {k: v for k, v in weights.items() if "neck" not in k}}, tmp_path / "part.pth")
    arguments = [str(trained / "small.py"), str(tmp_path / "part.pth"), "--work-dir", str(tmp_path), *small_scale()]
    assert test.main(arguments) == 2
    assert re.search(r"error: .*part.pth does not fit MaskRCNN: .* 16 missing", capsys.readouterr().err)


def test_predictions_are_drawn(trained, coco, tmp_path, capsys):
    config, checkpoint = str(trained / "small.py"), str(trained / "work" / "epoch_1.pth")
    flags = ["--out", str(tmp_path), "--threshold", "0", "--device", "cpu"]
    assert predict.main([config, checkpoint, str(coco / "val2017"), *flags, *small_scale()]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 3 and capsys.readouterr().out.count(".png: ") == 3


def test_a_published_detector_is_tested_and_keeps_its_classes(trained, tmp_path):
    source, config = trained / "work" / "epoch_1.pth", str(trained / "small.py")
    weights, card = publish(source, tmp_path / "published", name="small_detector")
    assert "pipeline_tag: object-detection" in card.read_text() and "80: person, bicycle" in card.read_text()
    read = CheckpointLoader.load_checkpoint(str(weights), "cpu", logger=None)
    saved = load_checkpoint(source)["state_dict"]
    assert read["state_dict"].keys() == saved.keys()
    assert all(torch.equal(saved[key], value) for key, value in read["state_dict"].items())
    cfg = read_config(config)
    model = open_checkpoint(cfg, str(weights), torch.device("cpu"))
    assert list(model.dataset_meta["classes"])[:2] == ["person", "bicycle"]
    cfg.test_dataloader.dataset.metainfo = dict(palette=[[1, 2, 3]] * 80)
    model = open_checkpoint(cfg, str(weights), torch.device("cpu"))
    assert model.dataset_meta["palette"] == [(1, 2, 3)] * 80  # as tuples, which alone can be drawn with


def run_script(script: str, *arguments: str, cwd: Path) -> str:
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "PORT": str(20000 + os.getpid() % 20000),
    }
    environment.pop("PYTHONPATH", None)
    command = [str(ROOT / "detection" / script), *arguments]
    answer = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)
    assert answer.returncode == 0, answer.stderr[-4000:]
    return answer.stdout + answer.stderr


def test_two_processes_train_from_any_directory(coco, tmp_path):
    shrunk(tmp_path, TINY, coco)
    run_script("dist_train.sh", "small.py", "2", *small_scale(), cwd=tmp_path)
    found = scalars(tmp_path / "work")
    assert len([line for line in found if "loss" in line]) == 1, "4 images, 2 processes, batches of 2"
    assert "Distributed training: True" in log_of(tmp_path / "work")
    assert load_checkpoint(tmp_path / "work" / "epoch_1.pth")["meta"]["iter"] == 1


@pytest.mark.slow
def test_two_processes_test(trained, tmp_path):
    config, checkpoint = str(trained / "small.py"), str(trained / "work" / "epoch_1.pth")
    run_script("dist_test.sh", config, checkpoint, "2", "--work-dir", "here", *small_scale(), cwd=tmp_path)
    evaluated = next(line for line in scalars(trained / "work") if "coco/bbox_mAP" in line)
    tested = json.loads(next((tmp_path / "here").glob("*/*.json")).read_text())
    assert tested["coco/bbox_mAP"] == pytest.approx(evaluated["coco/bbox_mAP"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("path", DETECTION, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_configuration_runs(path, coco, tmp_path):
    """Its own pipeline and schedule, one step and one evaluation of a small model."""
    config = shrunk(tmp_path, path, coco)
    assert train.main([str(config), "--cfg-options", "train_dataloader.dataset.indices=2"]) == 0
    last = (tmp_path / "work" / "last_checkpoint").read_text()
    assert test.main([str(config), last]) == 0
