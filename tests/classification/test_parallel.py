"""Sharded training is the same training: weights, average, optimizer state, checkpoints, a break in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from classification.averaging import build_average
from classification.config import load_config
from classification.parallel import blocks_of, gathered, parallelise, synchronised, without_effect
from classification.world import World
from tests.classification.runs import ROOT, write_images
from vmamba.errors import UserError
from vmamba.models.block import VSSBlock
from vmamba.models.vssm import VSSM
from vmamba.weights import load_checkpoint


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """The folder of the runs of two epochs in two processes; each process evaluates another number of batches."""
    from tests.classification.conftest import write_config

    folder = tmp_path_factory.mktemp("sharded")
    splits = {"train": {"a": 9, "b": 9, "c": 9}, "val": {"a": 6, "b": 6, "c": 5}}
    images = write_images(folder / "images", splits)
    # A large eps: the sign of a gradient that is nearly nothing must not decide a whole step.
    changes = dict(TRAIN__ACCUMULATION_STEPS=2, TRAIN__EPOCHS=2, TRAIN__OPTIMIZER={"EPS": 1e-2}, EMA__DECAY=0.5)
    data = dict(DATA__DATASET="imagenet", DATA__DATA_PATH=str(images), DATA__BATCH_SIZE=4)
    config = write_config(folder, **data, **changes)
    command = [sys.executable, str(Path(__file__).with_name("sharded_runs.py")), str(config), str(folder / "out")]
    command += [str(port) for port in free_ports(4)]
    fixed = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "OMP_NUM_THREADS": "1"}
    fixed |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **fixed, "RANK": rank, "LOCAL_RANK": rank}, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(text[-3000:] for text in outputs)
    return folder


@pytest.fixture(scope="module")
def runs(sharded) -> dict[str, dict]:
    """The last checkpoint of each run, by tag."""
    return {tag.name: load_checkpoint(tag / "last.pth") for tag in (sharded / "out" / "tiny").iterdir()}


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def leaves(state, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {key: leaf for k, v in items for key, leaf in leaves(v, f"{name}.{k}").items()}


def test_sharded_training_equals_replicated_training(runs):
    for entry in ("model", "model_ema", "optimizer"):
        replicated, sharded = (leaves(runs[tag][entry]) for tag in ("replicated", "sharded"))
        assert replicated.keys() == sharded.keys() and len(replicated) > 20
        for key, value in replicated.items():
            assert type(sharded[key]) is torch.Tensor
            assert torch.allclose(sharded[key], value, rtol=1e-3, atol=1e-5), f"{entry}{key}"
    assert runs["replicated"]["max_accuracy"] == runs["sharded"]["max_accuracy"]


def test_a_sharded_run_continues_bit_equal(runs):
    for entry in ("model", "model_ema", "optimizer"):
        whole, broken = (leaves(runs[tag][entry]) for tag in ("sharded", "continued"))
        assert whole.keys() == broken.keys()
        assert [key for key in whole if not torch.equal(whole[key], broken[key])] == []


def test_a_sharded_checkpoint_continues_in_one_process(sharded, run_main, tmp_path):
    start = sharded / "out" / "tiny" / "sharded" / "ckpt_epoch_0.pth"
    code, output, errors = run_main("--cfg", sharded / "tiny.yaml", "--resume", start)
    assert code == 0 and "resumed" in output and "Train: [1/2][0/6]" in output and "Train: [0/2]" not in output, errors


def test_processes_start_alike_and_evaluate_with_the_statistics_that_are_saved(sharded):
    found = json.loads((sharded / "out" / "batch_norm.json").read_text())
    assert list(found) == ["drawn", "started", "trained", "evaluated"]
    for before, after in (("drawn", "started"), ("trained", "evaluated")):
        first, second = found[before]
        assert first["0.running_mean"] != second["0.running_mean"], before
        assert found[after] == [first, first]
    assert found["drawn"][0]["1.weight"] != found["drawn"][1]["1.weight"]


# in one process


def config_of(*opts):
    return load_config(opts=[str(o) for o in opts])[0]


def test_blocks_are_what_the_network_repeats():
    network = VSSM(dims=[8, 16], depths=[2, 1], num_classes=3, ssm_d_state=1)
    assert [type(block) for block in blocks_of(network)] == [VSSBlock] * 3
    vit, resnet = (timm.create_model(name) for name in ("test_vit", "test_resnet"))
    assert blocks_of(vit) == list(vit.blocks)
    assert len(blocks_of(resnet)) == 4 and blocks_of(nn.Linear(2, 2)) == []


def test_state_that_is_whole_stays_what_it_is():
    state = {"a": [torch.ones(2), 3], "b": (0.9, 0.999), "c": {"d": None}}
    found = gathered(state, keep=False)
    assert found["a"][0] is state["a"][0] and found["b"] == (0.9, 0.999) and found["c"] == {"d": None}


def test_settings_that_one_process_or_a_cpu_cannot_follow():
    config, cpu = config_of("TRAIN.PARALLEL", "fsdp2", "TRAIN.SYNC_BN", True), torch.device("cpu")
    assert [line.split()[0] for line in without_effect(config, World())] == ["TRAIN.PARALLEL", "TRAIN.SYNC_BN"]
    assert [line.split()[0] for line in without_effect(config, World(0, 2, cpu))] == ["TRAIN.SYNC_BN"]
    assert without_effect(config_of(), World()) == []
    network = nn.Linear(2, 2)
    assert parallelise(config, network, None, World()) is network


def test_batch_norms_are_synchronised_on_gpus():
    config = config_of("TRAIN.SYNC_BN", True)
    network = timm.create_model("test_resnet")
    plain = {name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert synchronised(config, network, World(0, 2)) is network and plain
    found = synchronised(config, network, World(0, 2, torch.device("cuda", 0)))
    assert {name for name, m in found.named_modules() if isinstance(m, nn.SyncBatchNorm)} == plain


def test_an_average_on_the_cpu_cannot_be_sharded():
    config = config_of("TRAIN.PARALLEL", "fsdp2", "EMA.FORCE_CPU", True)
    network = nn.Linear(2, 2)
    with pytest.raises(UserError, match="EMA.FORCE_CPU keeps a whole copy"):
        parallelise(config, network, build_average(config, network), World(0, 2, torch.device("cuda", 0)))
