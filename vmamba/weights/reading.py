"""Reading checkpoints: verified, and never by unsafe pickle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from vmamba.errors import closest
from vmamba.weights.manifest import CheckpointError, reading, verify


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the dict that a checkpoint file holds; a ``.safetensors`` file gives ``{"model": tensors}``.

    The file is verified against the manifest beside it, where there is one, and unpickled with ``weights_only=True``.
    Raises `CheckpointError` (missing, unreadable, damaged, unsafe, not a checkpoint), one line that names the file.
    """
    path = Path(path)
    with reading(path):
        _require_file(path)
    problem = verify(path)
    if problem:
        raise CheckpointError(f"{path} is damaged: {problem}; take another checkpoint or copy it again")
    if path.suffix == ".safetensors":
        return {"model": _read_safetensors(path, map_location)}
    try:
        with reading(path):
            payload = torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make the unpickler raise anything
        raise CheckpointError(f"{path} {_reason(error, path)}") from None
    if not isinstance(payload, dict):
        raise CheckpointError(f"{path} holds a {type(payload).__name__}, not a dict of weights")
    return payload


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name a checkpoint file inside it, such as {path / 'best.pth'}")
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(f"there is no checkpoint {path}.{closest(path.name, siblings)}")


def _read_safetensors(path: Path, map_location: str | torch.device) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with reading(path):
            return load_file(path, device=str(map_location))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None


def _reason(error: Exception, path: Path) -> str:
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return (
            f"wants to run or build '{named.group(1)}', which is neither a tensor nor a plain type: refused, nothing "
            "was executed; save the weights alone, as {'model': model.state_dict()}"
        )
    with reading(path), open(path, "rb") as file:
        start = file.read(8)
    return f"is not a readable checkpoint (it starts with {start!r}; {type(error).__name__})"
