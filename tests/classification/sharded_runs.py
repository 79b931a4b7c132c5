"""Run by test_parallel.py in each of two processes: the same training replicated, sharded, and sharded with a break.

Arguments: the configuration, the folder of the runs, and a free port for each of the three.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from classification.main import main

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


if __name__ == "__main__":
    file, out = sys.argv[1], Path(sys.argv[2])
    PORTS.extend(sys.argv[3:])
    train(file, out, "replicated", "ddp")
    train(file, out, "sharded", "fsdp2")
    interrupted(out / "tiny" / "sharded", out / "tiny" / "continued")
    train(file, out, "continued", "fsdp2")
