"""Run by test_parallel.py in each of two processes: the same training replicated, sharded, and sharded with a break.

Last, one network with a batch norm. Arguments: the configuration, the folder of the runs, and four free ports.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import torch
from torch import nn

from classification.config import load_config
from classification.evaluate import evaluate
from classification.main import main
from classification.parallel import start_alike
from classification.precision import Precision
from classification.world import start_world

PORTS: list[str] = []


def train(config: str, output: Path, tag: str, parallel: str) -> None:
    os.environ["MASTER_PORT"] = PORTS.pop()
    code = main(["--cfg", config, "--output", str(output), "--tag", tag, "--parallel", parallel])
    assert code == 0, f"{tag} ended with {code}"


def interrupted(source: Path, target: Path) -> None:
    """Make `target` the folder that a run like `source` leaves when it is killed after its first epoch."""
    if os.environ["RANK"] == "0":
        shutil.copytree(source, target)
        for name in ("ckpt_epoch_1.pth", "last.pth", "best.pth"):
            (target / name).unlink()


def batch_norm(file: Path) -> None:
    """Write the state in both processes of a network that sees other images in each, before and after they agree."""
    os.environ["MASTER_PORT"] = PORTS.pop()
    found = {}
    with start_world("cpu") as world:
        torch.manual_seed(world.rank)
        network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
        images, labels = torch.randn(8, 3), torch.arange(8) % 3

        def note(moment: str) -> None:
            found[moment] = world.gather({key: value.tolist() for key, value in network.state_dict().items()})

        network(images)
        note("drawn")
        start_alike(network, world)
        note("started")
        network(images)
        note("trained")
        precision = Precision(load_config()[0], world.device)
        evaluate(network, [(images, labels)], precision, world, logging.getLogger("batch norm"))
        note("evaluated")
        if world.first:
            file.write_text(json.dumps(found))


if __name__ == "__main__":
    file, out = sys.argv[1], Path(sys.argv[2])
    PORTS.extend(sys.argv[3:])
    train(file, out, "replicated", "ddp")
    train(file, out, "sharded", "fsdp2")
    interrupted(out / "tiny" / "sharded", out / "tiny" / "continued")
    train(file, out, "continued", "fsdp2")
    batch_norm(out / "batch_norm.json")
