"""A published UPerNet, its network shrunk, on a tree of ADE20K's layout: two processes train it, one resumes, tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.openmmlab.ade_tree import SEGMENTATION, shrink, write_ade_tree
from vmamba.openmmlab import test as testing
from vmamba.openmmlab import train as training
from vmamba.weights import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "segmentation"
TINY = ROOT / "configs" / "segmentation" / "vssm1" / "upernet_vssm_4xb4-160k_ade20k-512x512_tiny.py"


def small(config: Path, folder: Path) -> Path:
    """Write `config`, shrunk, with a tree of its own, and return the file."""
    cfg = shrink(Config.fromfile(config), write_ade_tree(folder / "ade"))
    cfg.dump(folder / "small.py")
    return folder / "small.py"


def scores(work: Path) -> list[dict]:
    """The metrics of each test run in a work folder."""
    files = sorted(work.glob("[0-9]*_[0-9]*/[0-9]*_[0-9]*.json"))
    return [json.loads(path.read_text()) for path in files]


def run_tool(name: str, *words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a script of segmentation/ in another folder, without the checkout on the path, on a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = dict(PYTHON=sys.executable, OMP_NUM_THREADS="1", PORT=port, PYTHONPATH="")
    environment = {**os.environ, **common, **environment}
    command = [str(word) for word in (SCRIPTS / name, *words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)


def test_it_trains_in_two_processes_resumes_and_is_tested_with_many_sizes(tmp_path):
    config, work = small(TINY, tmp_path), tmp_path / "work"
    answer = run_tool("dist_train.sh", config, 2, "--work-dir", work, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert "mIoU" in answer.stdout + answer.stderr and (work / "iter_2.pth").is_file()

    more = ["--cfg-options", "train_cfg.max_iters=4", "train_cfg.val_interval=4"]
    assert training.main([str(config), "--work-dir", str(work), "--resume", *more]) == 0
    state = load_checkpoint(work / "iter_4.pth")["optimizer"]["state"]
    assert {int(value["step"]) for value in state.values()} == {4}, "the optimizer went on where it was"

    for words in (["--show-dir", str(tmp_path / "seen")], ["--tta"]):
        assert testing.main([str(config), str(work / "iter_4.pth"), "--work-dir", str(tmp_path / "t"), *words]) == 0
    plain, tta = scores(tmp_path / "t")
    assert {"mIoU", "aAcc", "mAcc"} <= set(plain) == set(tta) and plain != tta
    assert all(0 <= score <= 100 for key, score in {**plain, **tta}.items() if key in ("mIoU", "aAcc", "mAcc"))
    assert len(list((tmp_path / "seen").rglob("*.png"))) == 2, "a picture of each image"


@pytest.mark.slow
@pytest.mark.parametrize("config", SEGMENTATION, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_configuration_from_end_to_end(config, tmp_path):
    shrunk, work = small(config, tmp_path), tmp_path / "work"
    assert training.main([str(shrunk), "--work-dir", str(work)]) == 0
    assert testing.main([str(shrunk), str(work / "iter_2.pth"), "--work-dir", str(work), "--tta"]) == 0
    assert "mIoU" in scores(work)[-1]


@pytest.mark.slow
def test_it_is_tested_in_two_processes(tmp_path):
    config, work = small(TINY, tmp_path), tmp_path / "work"
    assert training.main([str(config), "--work-dir", str(work)]) == 0
    answer = run_tool("dist_test.sh", config, work / "iter_2.pth", 2, "--work-dir", work, "--tta", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert testing.main([str(config), str(work / "iter_2.pth"), "--work-dir", str(work), "--tta"]) == 0
    two, one = scores(work)
    assert two["aAcc"] == one["aAcc"] and two["mIoU"] == one["mIoU"]


@pytest.mark.parametrize(
    ("tool", "words"),
    [("slurm_train.sh", ["c.py", "--work-dir", "w"]), ("slurm_test.sh", ["c.py", "w.pth"])],
)
def test_slurm_gets_one_task_for_each_gpu(tool, words, tmp_path):
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    named = ["part", "job", *(word for word in words if word != "--work-dir")]
    answer = run_tool(tool, *named, "--amp", cwd=tmp_path, PATH=path, GPUS="16", SRUN_ARGS="--time 5 --qos high")
    assert answer.returncode == 0, answer.stderr
    given = answer.stdout.split()
    assert {"--ntasks=16", "--gres=gpu:8", "--job-name=job", "--time", "5"} <= set(given) and given[:2] == [
        "-p",
        "part",
    ]
    script = SCRIPTS / "tools" / f"{tool.removeprefix('slurm_').removesuffix('.sh')}.py"
    start = given.index(str(script))
    assert given[start + 1 :] == [*words, "--launcher", "slurm", "--amp"]
    refused = run_tool(tool, "part", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.startswith("usage: ")
