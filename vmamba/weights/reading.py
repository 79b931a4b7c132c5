"""Reading checkpoints: verified, and never by unsafe pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vmamba.errors import closest
from vmamba.weights.kinds import NEXT_STEP, PICKLE, SAFETENSORS, kind_of
from vmamba.weights.manifest import CheckpointError, reading, verify
from vmamba.weights.safetensors_file import read_safetensors
from vmamba.weights.unpickling import unpickle


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the dict that a checkpoint file holds: tensors and plain data.

    A safetensors file gives its tensors as ``model``, beside what its metadata says. A config, Namespace or array
    inside a ``.pth`` file comes as a dict or array of equal values. The file is verified against the manifest beside
    it, where there is one, and against the digests inside it and in its name.
    Raises `CheckpointError` (missing, unreadable, damaged, unsafe, not a checkpoint), one line that names the file.
    """
    path = Path(path)
    with reading(path):
        require_file(path)
        kind = kind_of(path)
    problem = verify(path)
    if problem and kind not in NEXT_STEP:
        raise CheckpointError(f"{path} is damaged: {problem}; take another checkpoint or copy it again")
    if kind in NEXT_STEP:
        raise CheckpointError(f"{path} is {kind}, not weights: {NEXT_STEP[kind]}")
    if kind == SAFETENSORS or (path.suffix == ".safetensors" and kind != PICKLE):
        tensors, about = read_safetensors(path, map_location)
        return {**about, "model": tensors}
    payload = unpickle(path, map_location)
    if not isinstance(payload, dict):
        raise CheckpointError(f"{path} holds a {type(payload).__name__}, not a dict of weights")
    return payload


def require_file(path: Path) -> None:
    """Raise `CheckpointError` where `path` is a folder or nothing, with the nearest name."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name a checkpoint file inside it, such as {path / 'best.pth'}")
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(f"there is no checkpoint {path}.{closest(path.name, siblings)}")
