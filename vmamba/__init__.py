"""Vision state-space models. Light to import: torch, timm and Triton load at the first use of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from PIL import Image
    from torch import Tensor, nn

__version__ = "0.1.0"
__all__ = ["__version__", "classify_image", "create_model", "extract_features", "list_models"]


def list_models(pattern: str = "") -> list[str]:
    """Return the sorted names of this package's models, those matching the glob `pattern` if one is given."""
    from vmamba.models import model_names

    return model_names(pattern)


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Return a model by name: timm's ``create_model`` over the models of this package.

    `kwargs` are timm's (``pretrained``, ``num_classes``, ``in_chans``, ``features_only``, ``out_indices``, ...)
    and the constructor's. The published long names and timm's tags (``vim_tiny.in1k``) are names too. Raises
    `vmamba.errors.UserError` for any other name that is not in `list_models`.
    """
    import timm

    from vmamba.errors import UserError, closest
    from vmamba.models import model_tags, short_name

    if short_name(str(name)) is None:
        plain, _, tag = str(name).partition(".")
        short = short_name(plain)
        if short is None:
            raise UserError(f"unknown model '{name}'.{closest(name, list_models())} See vmamba.list_models().")
        tags = ", ".join(f"'{plain}.{known}'" for known in model_tags(short))
        raise UserError(f"unknown tag '{tag}' of the model '{plain}'; name '{plain}' or {tags}")
    return timm.create_model(name, **kwargs)


def classify_image(
    image: str | Path | Image.Image,
    model: str | nn.Module | None = None,
    weights: str | Path | None = None,
    top_k: int = 5,
    device: str | torch.device | None = None,
) -> list[tuple[str, float]]:
    """Return the `top_k` likeliest (class name, probability) of an image; see `vmamba.using.classify_image`."""
    from vmamba import using

    return using.classify_image(image, model, weights, top_k, device)


def extract_features(
    images: str | Path | Image.Image | Sequence[str | Path | Image.Image],
    model: str | nn.Module | None = None,
    weights: str | Path | None = None,
    level: int | Sequence[int] = -1,
    pool: bool = False,
    device: str | torch.device | None = None,
    batch: int = 16,
) -> Tensor | list[Tensor]:
    """Return the maps [B, C, H, W] of a stage, or their means [B, C]; see `vmamba.using.extract_features`."""
    from vmamba import using

    return using.extract_features(images, model, weights, level, pool, device, batch)
