"""Features of labelled images in shards on disk, made once: a command that was cut goes on where it was.

A folder of shards looks like this::

    train_00000.safetensors  train_00001.safetensors  val_00000.safetensors
    about.json               what they are of: model, weights, size, images

Each shard holds "features" [n, C] and "labels" [n].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from analyze.command import tracked
from analyze.labelled import Batches, Labelled
from analyze.subject import Subject
from vmamba.errors import UserError
from vmamba.weights import write_bytes, write_text

ABOUT = "about.json"


def pooled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function from images to the features [B, C] that a classifier's head is given."""
    features, head = getattr(network, "forward_features", None), getattr(network, "forward_head", None)
    if not callable(features) or not callable(head):
        raise UserError(f"model: {type(network).__name__} has no forward_head; name a model of vmamba or timm")
    return lambda x: head(features(x), pre_logits=True)


def write_shards(
    folder: Path, subject: Subject, data: Labelled, split: str, fingerprint: str, batch: int, size: int
) -> tuple[int, str]:
    """Write the shards of a split that are not there yet, of `size` images each; return how many, and the batch's fate.

    Raises `UserError` where the folder holds the features of another model, size or set of images.
    """
    about = folder / ABOUT
    told = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    own = {"of": fingerprint, split: data.digest(), f"{split} shard": size}
    for key, value in own.items():
        if key in told and told[key] != value:
            raise UserError(f"{folder} holds the features of something else ({key}); give another --out, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(about, json.dumps({**told, **own}, indent=1) + "\n")
    batches, written = Batches(subject, batch), 0
    function = pooled(subject.network)
    for path, images, labels in tracked(_parts(folder, data, split, size), f"features, {split}"):
        if path.is_file():
            continue
        features = batches.map(function, images)
        write_bytes(path, save({"features": features.contiguous(), "labels": torch.tensor(labels)}))
        written += 1
    return written, batches.said()


def _parts(
    folder: Path, data: Labelled, split: str, size: int
) -> list[tuple[Path, Sequence[Path | Image.Image], list[int]]]:
    slices = [slice(start, start + size) for start in range(0, len(data.images), size)]
    return [
        (folder / f"{split}_{number:05d}.safetensors", data.images[own], list(data.labels[own]))
        for number, own in enumerate(slices)
    ]


def read_shards(folder: Path, split: str, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return the features [n, C] and labels [n] of all shards of a split, on a device."""
    parts = [load_file(path, str(device)) for path in sorted(folder.glob(f"{split}_*.safetensors"))]
    return torch.cat([part["features"] for part in parts]), torch.cat([part["labels"] for part in parts])
