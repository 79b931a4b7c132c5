"""What a run ran on: versions, devices, backends, the state of the checkout, and every start of the run."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from classification.data import Data
from classification.world import World
from vmamba.doctor import devices, versions
from vmamba.weights import write_text
from vmamba_kernels import native
from vmamba_kernels.processor import processor_name

ENVIRONMENT, STARTS = "environment.json", "starts.jsonl"
# What changes how fast or how exactly a run computes.
_VARIABLES = ("CUDA_", "NCCL_", "GLOO_", "OMP_", "MKL_", "TORCH_", "PYTORCH_", "TRITON_", "VMAMBA_", "NVIDIA_TF32")
_ROOT = Path(__file__).resolve().parents[1]
_LONGEST_STATUS = 60


def restarts(world: World) -> int:
    """Return how often torchrun has started the processes again, at least: the same on every process; all call it.

    A machine counts the failures of its own processes, not those that it hears of; this is the most that any counts.
    """
    own = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    return int(world.highest(torch.tensor([own], device=world.device))[0])


def write_environment(folder: Path, data: Data, network: nn.Module, world: World, epoch: int, restart: int) -> None:
    """Write ``environment.json`` for this start of a run, and add the start to ``starts.jsonl``."""
    git = git_state()
    start = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "epoch": epoch,
        "processes": world.size,
        "machines": world.size // int(os.environ.get("LOCAL_WORLD_SIZE", world.size)),
        "restart": restart,
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "command": command_line(),
    }
    everything = {
        "start": start,
        "versions": dict(versions()),
        "cpu": {"name": processor_name(), "cores": os.cpu_count(), "memory_gib": _memory_gib()},
        "devices": dict(devices()),
        "used_device": str(world.device),
        "backends": _backends(world.device.type),
        "git": git,
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
        "data": {
            "classes": len(data.classes),
            "training_images": data.train.images if data.train is not None else None,
            "held_out_images": data.held_out.images,
        },
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    write_text(folder / ENVIRONMENT, json.dumps(everything, indent=1) + "\n")
    path = folder / STARTS
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, before + json.dumps(start) + "\n")


def command_line() -> str:
    """Return the command that started this process, as one would type it."""
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"python -m {module.name.removesuffix('.__main__')}" if module is not None else Path(sys.argv[0]).name
    return " ".join([program, *map(shlex.quote, sys.argv[1:])])


def git_state(root: Path = _ROOT) -> dict[str, Any]:
    """Return commit, branch and what differs from it in the checkout at `root`, or why nobody can tell."""
    commit, refused = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "why": refused}
    status = (_git(root, "status", "--porcelain")[0] or "").splitlines()
    branch = _git(root, "rev-parse", "--abbrev-ref", "HEAD")[0]
    changes = (_git(root, "diff", "--stat", "HEAD")[0] or "").splitlines()
    return {
        "commit": commit.strip(),
        "branch": (branch or "").strip(),
        "dirty": bool(status),
        "status": status[:_LONGEST_STATUS],
        "diff_stat": changes[-_LONGEST_STATUS:],
    }


def _git(root: Path, *arguments: str) -> tuple[str | None, str]:
    """Return (what git printed, "") or (None, why not)."""
    if not (root / ".git").exists():  # an installed copy may lie inside a repository that is not this one
        return None, f"{root.name} is no checkout"
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, errors="replace", timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    if answer.returncode != 0:
        return None, " ".join(answer.stderr.split())
    return answer.stdout, ""


def _backends(device: str) -> dict[str, dict[str, str]]:
    """Return the backend that each operator takes on `device`, and why not another; `vmamba.doctor` checks them."""
    return {
        row.operator: {"backend": row.backend, "not": row.reason} for row in native.explain() if row.device == device
    }


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError):
        return None
