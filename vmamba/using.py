"""One-liners over the models: what an image shows, and what a model makes of it inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vmamba.errors import UserError
from vmamba.image_model import ImageModel, Picture, one_or_more, open_model


def classify_image(
    image: Picture,
    model: str | nn.Module | None = None,
    weights: str | Path | None = None,
    top_k: int = 5,
    device: str | torch.device | None = None,
) -> list[tuple[str, float]]:
    """Return the `top_k` likeliest (class name, probability) of an image file or a PIL image, likeliest first.

    `model` is a name of `vmamba.list_models()`, with its released weights or those of the file `weights`, or a network;
    without it `weights` is a checkpoint of the trainer, which knows its model. `device` None takes a GPU if there is
    one. Raises `UserError`, one line, for what cannot be read, found or loaded.
    """
    if top_k < 1:
        raise UserError(f"top_k: expected at least 1, got {top_k}")
    return open_model(model, weights, device).classify(image, top_k)


def extract_features(
    images: Picture | Sequence[Picture],
    model: str | nn.Module | None = None,
    weights: str | Path | None = None,
    level: int | Sequence[int] = -1,
    pool: bool = False,
    device: str | torch.device | None = None,
    batch: int = 16,
) -> Tensor | list[Tensor]:
    """Return the maps [B, C, H, W] of a stage for images, on the CPU; with `pool` their means over positions [B, C].

    `level` counts stages from 0, or from the end below it; several levels give a list, in their order. The other
    arguments are those of `classify_image`; `batch` images are computed at once. Raises `UserError` as it does, and for
    a level that the model does not have.
    """
    if batch < 1:
        raise UserError(f"batch: expected at least 1, got {batch}")
    pictures = one_or_more(images)
    opened = open_model(model, weights, device)
    levels = [level] if isinstance(level, int) else list(level)
    parts = [features_of(opened, pictures[i : i + batch], levels, pool) for i in range(0, len(pictures), batch)]
    found = [torch.cat(maps) for maps in zip(*parts, strict=True)]
    return found[0] if isinstance(level, int) else found


@torch.inference_mode()
def features_of(opened: ImageModel, pictures: Sequence[Picture], levels: Sequence[int], pool: bool) -> list[Tensor]:
    """Return the maps [B, C, H, W] of one batch of pictures, or their means [B, C], one tensor for each level."""
    network = opened.network
    intermediates = getattr(network, "forward_intermediates", None)
    if not callable(intermediates):
        raise UserError(f"model: {type(network).__name__} has no forward_intermediates; name a model of vmamba or timm")
    count = len(getattr(network, "feature_info", ()))
    for level in levels:
        if not -count <= level < count:
            raise UserError(f"level: {level} is not a stage; this model has 0 to {count - 1}")
    taken = sorted({level % count for level in levels})
    if not taken:
        raise UserError("level: there is none; give a stage or several")
    x = torch.stack([opened.read(picture) for picture in pictures]).to(opened.device)
    maps = dict(zip(taken, intermediates(x, indices=taken, intermediates_only=True), strict=True))
    wanted = [maps[level % count] for level in levels]
    return [(m.float().mean((2, 3)) if pool else m).cpu() for m in wanted]
