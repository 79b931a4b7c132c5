"""Logs of every form that is read, the figures taken from them, and bad words."""

from __future__ import annotations

import json

import pytest

from analyze import curves
from analyze.logs import distinct_names, line_fit, read_log, smoothed

TEXT = """\
[2024-01-01 00:00:00 vssm] (main.py 100): INFO  * Acc@1 1.000 Acc@5 5.000
[2024-01-01 00:00:00 vssm] (main.py 277): INFO Train: [0/2][0/10]\teta 0:10:00 lr 0.000001\t wd 0.0500\t\
time 3.1 (3.1)\tloss 6.9 (6.9)\tgrad_norm 1.2 (nan)\tloss_scale 65536.0000 (65536.0000)\tmem 100MB
[2024-01-01 00:01:00 vssm] (main.py 277): INFO Train: [0/2][9/10]\teta 0:10:00 lr 0.000500\t wd 0.0500\t\
time 0.1 (0.3)\tloss 6.1 (6.5)\tgrad_norm 1.2 (1.3)\tloss_scale 65536.0000 (65536.0000)\tmem 100MB
[2024-01-01 00:02:00 vssm] (main.py 325): INFO Test: [0/2]\tTime 1.0 (1.0)\tLoss 5.0000 (5.2500)\t\
Acc@1 10.000 (10.000)\tAcc@5 30.000 (30.000)\tMem 200MB
[2024-01-01 00:02:00 vssm] (main.py 331): INFO  * Acc@1 10.500 Acc@5 30.000
[2024-01-01 00:03:00 vssm] (main.py 325): INFO Test: [0/2]\tTime 1.0 (1.0)\tLoss nan (nan)\t\
Acc@1 4.000 (4.000)\tAcc@5 9.000 (9.000)\tMem 200MB
[2024-01-01 00:03:00 vssm] (main.py 331): INFO  * Acc@1 4.000 Acc@5 9.000
[2024-01-01 00:04:00 vssm] (main.py 277): INFO Train: [1/2][9/10]\teta 0:00:00 lr 0.001000\t wd 0.0500\t\
time 0.1 (0.3)\tloss 5.1 (5.5)\tgrad_norm 1.2 (1.3)\tloss_scale 65536.0000 (65536.0000)\tmem 100MB
[2024-01-01 00:05:00 vssm] (main.py 331): INFO  * Acc@1 20.250 Acc@5 50.000
"""
CSV = "epoch,lr,train_loss,val_loss,acc1,ema_acc1\n0,0.1,2.0,1.9,40.0,\n1,0.2,1.5,,50.0,55.0\n"
CONVNEXT = "\n".join(
    json.dumps({"train_lr": 1e-3, "train_loss": 6.5 - e, "test_loss": 5.0, "test_acc1": 10.0 + e, "epoch": e})
    for e in (0, 1)
)
MMENGINE = """\
{"lr": 0.1, "data_time": 0.1, "loss": 3.0, "time": 0.5, "epoch": 1, "iter": 50, "memory": 9, "step": 50}
{"lr": 0.2, "data_time": 0.1, "loss": 2.0, "time": 0.5, "epoch": 1, "iter": 100, "memory": 9, "step": 100}
{"coco/bbox_mAP": 0.25, "coco/bbox_mAP_50": 0.4, "step": 1}
{"lr": 0.2, "data_time": 0.1, "loss": 1.0, "time": 0.5, "epoch": 2, "iter": 150, "memory": 9, "step": 150}
{"coco/bbox_mAP": 0.35, "coco/bbox_mAP_50": 0.5, "step": 2}
"""
MMSEG = """\
2024/01/01 00:00:00 - mmengine - INFO - Iter(train) [   50/160000]  base_lr: 1.0e-04 lr: 1.0e-04  eta: 1:00:00  \
time: 0.5  data_time: 0.1  memory: 100  loss: 2.5000  decode.loss_ce: 2.0
2024/01/01 00:00:00 - mmengine - INFO - Iter(val) [250/250]    aAcc: 70.1000  mIoU: 30.5000  mAcc: 40.0  \
data_time: 0.01  time: 0.1
"""
MMCV = """\
{"env_info": "x"}
{"mode": "train", "epoch": 1, "iter": 50, "lr": 0.1, "loss": 2.0}
{"mode": "val", "epoch": 1, "iter": 100, "lr": 0.1, "accuracy_top-1": 70.0, "accuracy_top-5": 90.0}
"""


def log_of(tmp_path, text, name="log.txt"):
    (tmp_path / name).write_text(text)
    return read_log(tmp_path / name)


def test_the_text_of_swin_and_vmamba(tmp_path):
    """The evaluation before any epoch belongs to none; a second one after an epoch is that of the averaged weights."""
    log = log_of(tmp_path, TEXT)
    assert log.rows[0] == {
        "train_loss": 6.5, "lr": 0.0005, "acc1": 10.5, "acc5": 30.0, "val_loss": 5.25, "ema_acc1": 4.0, "ema_acc5": 9.0,
    }  # fmt: skip
    assert log.rows[1] == {"train_loss": 5.5, "lr": 0.001, "acc1": 20.25, "acc5": 50.0}
    assert log.best("acc1") == (1, 20.25) and log.unit == "epoch"


def test_the_trainers_own_table_and_folder(tmp_path):
    log_of(tmp_path, CSV, "metrics.csv")
    log = read_log(tmp_path)
    assert log.rows[1] == {"epoch": 1, "lr": 0.2, "train_loss": 1.5, "acc1": 50.0, "ema_acc1": 55.0}
    assert log.points("ema_acc1") == [(1, 55.0)] and log.scores()[:2] == ["acc1", "ema_acc1"]


def test_convnext(tmp_path):
    log = log_of(tmp_path, CONVNEXT)
    assert log.rows[1] == {"lr": 1e-3, "train_loss": 5.5, "val_loss": 5.0, "acc1": 11.0}


def test_mmengine_and_mmcv(tmp_path):
    log = log_of(tmp_path, MMENGINE, "scalars.json")
    assert log.rows[1] == {"lr": 0.2, "train_loss": 2.5, "coco/bbox_mAP": 0.25, "coco/bbox_mAP_50": 0.4}
    assert log.best("coco/bbox_mAP") == (2, 0.35) and log.scores() == ["coco/bbox_mAP", "coco/bbox_mAP_50"]
    log = log_of(tmp_path, MMSEG)
    assert log.unit == "iteration" and log.rows[50]["train_loss"] == 2.5 and log.rows[50]["mIoU"] == 30.5
    log = log_of(tmp_path, MMCV)
    assert log.rows == {1: {"lr": 0.1, "train_loss": 2.0, "acc1": 70.0, "acc5": 90.0}}


def test_smoothing_and_lines():
    assert smoothed([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([0.0, 1.0], 0.5) == pytest.approx([0.0, 2 / 3])
    assert line_fit([(1, 3.0), (2, 5.0), (4, 9.0)]) == pytest.approx((2.0, 1.0))
    assert line_fit([(1, 3.0)]) is None


def test_the_command(tmp_path, capsys):
    (tmp_path / "vmamba.txt").write_text(TEXT)
    (tmp_path / "convnext.txt").write_text(CONVNEXT)
    argv = [str(tmp_path / "vmamba.txt"), str(tmp_path / "convnext.txt"), "--smooth", "0.5", "--out", str(tmp_path)]
    assert curves.main(argv) == 0
    tables = json.loads((tmp_path / "curves.json").read_text())["tables"]
    first, second = tables["Runs"]
    assert (first["best acc1"], first["acc1 best at"], first["acc1 a epoch"]) == (20.25, 1, pytest.approx(9.75))
    assert second["best acc1"] == 11.0 and len(tables["vmamba.txt, all of it"]) == 2
    assert (tmp_path / "curves.png").exists() and "<svg" in (tmp_path / "curves.svg").read_text()
    assert "least-squares" in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart(tmp_path):
    logs = [tmp_path / name / "log.txt" for name in ("a", "b")]
    for log in logs:
        log.parent.mkdir()
        log.write_text(TEXT)
    assert curves.main([*map(str, logs), "--out", str(tmp_path)]) == 0
    tables = json.loads((tmp_path / "curves.json").read_text())["tables"]
    assert [row["log"] for row in tables["Runs"]] == ["a/log.txt", "b/log.txt"] and len(tables) == 3
    assert distinct_names([logs[0], logs[0]]) == ["log.txt #1", "log.txt #2"]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["none.txt"], "there is no log none.txt"),
        (["poem.txt"], "is no log that is known here"),
        (["empty"], "holds no metrics.csv"),
        (["convnext.txt", "--scores", "mIoU"], "no log has it; they have acc1"),
        (["convnext.txt", "--smooth", "1"], "--smooth, --fit"),
    ],
)
def test_bad_words(tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "poem.txt").write_text("roses\n")
    (tmp_path / "convnext.txt").write_text(CONVNEXT)
    assert curves.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
