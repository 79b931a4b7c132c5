"""The safetensors file of this project: tensors, and in its metadata the rest of a checkpoint with a digest.

The metadata, all strings::

    format   "pt"
    vmamba   JSON: config, model name, key layout, epoch, ... of the checkpoint, whatever is plain data
    sha256   over names, types, shapes and bytes of the tensors and over the text of `vmamba`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmamba.weights.manifest import CheckpointError, reading


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
    """Write `tensors` to `path` with `about` and a digest in the metadata; tensors that share memory are copied."""
    from safetensors.torch import save_file

    wrong = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(f"{path}: '{wrong[0]}' is no tensor, as safetensors needs; write a .pth file")
    owned = _each_its_own({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    text = json.dumps(about or {}, default=_as_json, sort_keys=True)
    metadata = {"format": "pt", "vmamba": text, "sha256": digest_of(owned, text)}
    path.touch()
    mode = path.stat().st_mode  # what the user's umask gives; the library writes for the owner alone
    save_file(owned, path, metadata=metadata)
    path.chmod(mode)


def read_safetensors(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and what the metadata says of them: {} in a file of another writer.

    Raises `CheckpointError` for a damaged file: header, length, or the digest where there is one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with reading(path), safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
    text = metadata.get("vmamba", "{}")
    stored = metadata.get("sha256")
    if stored is not None and stored != (found := digest_of(tensors, text)):
        raise CheckpointError(
            f"{path} is damaged: the sha256 of its content is {found[:12]}..., not {stored[:12]}... as it says itself; "
            "take another checkpoint or copy it again"
        )
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise CheckpointError(f"{path} is damaged: its metadata 'vmamba' is no JSON object")
    if str(device) != "cpu":
        tensors = {name: value.to(device) for name, value in tensors.items()}
    return tensors, about


def digest_of(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return the sha256 over the tensors, in the order of their names, and over `text`."""
    digest = hashlib.sha256(text.encode("utf-8"))
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"\0{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _each_its_own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    result = {}
    for name, value in tensors.items():
        storage = value.untyped_storage()
        whole = storage.nbytes() == value.numel() * value.element_size()
        result[name] = value if whole and storage.data_ptr() not in seen else value.clone()
        seen.add(storage.data_ptr())
    return result


def _as_json(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
