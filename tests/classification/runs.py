"""Runs of the trainer in processes of their own, and small image folders for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def start_process(arguments: list, processes: int = 1) -> subprocess.Popen:
    """Start the trainer in its own process, or in several through torchrun, with one thread each."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    return subprocess.Popen(
        [*launcher, "-m", "classification", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen, timeout: float = 240) -> tuple[int, str]:
    """Wait for a process of `start_process`; answer (exit code, output)."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def write_images(root: Path, splits: dict[str, dict[str, int]], size: int = 12) -> Path:
    """Write random PNG images: {split: {class: number}}."""
    source = np.random.default_rng(0)
    for split, classes in splits.items():
        for name, number in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(number):
                Image.fromarray(source.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return root
