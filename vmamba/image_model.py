"""A network with what belongs to it: the transform of its images, and the names of its classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vmamba.class_names import described, imagenet_names, numbered
from vmamba.devices import choose_device
from vmamba.errors import UserError
from vmamba.models.from_config import input_channels, model_from_config
from vmamba.preprocess import (
    IMAGE_ERRORS,
    evaluation_transform,
    image_mode,
    in_mode,
    read_image,
    turned_upright,
    with_size,
)
from vmamba.weights import CheckpointError, load_checkpoint, load_weights

_NEXT_STEP = "name a checkpoint that the trainer wrote"
Picture = str | Path | Image.Image


@dataclass
class ImageModel:
    """A network in evaluation on a device; `transform` makes its input [C, H, W] of a PIL image of `mode`."""

    network: nn.Module
    transform: Callable[[Image.Image], Tensor]
    mode: str
    class_names: list[str]
    device: torch.device

    def read(self, picture: Picture) -> Tensor:
        """Return an image file or a PIL image as the network's input; a `UserError` names what is not an image."""
        if isinstance(picture, Image.Image):
            try:
                image = in_mode(turned_upright(picture.copy()), self.mode)
            except ValueError as error:
                raise UserError(f"image: {error}") from error
            return self.transform(image)
        if not isinstance(picture, str | Path):
            raise UserError(f"image: expected a path or a PIL image, got {type(picture).__name__}")
        if not Path(picture).is_file():
            raise UserError(f"there is no image file {picture}; check the path")
        try:
            image = in_mode(read_image(picture), self.mode)
        except IMAGE_ERRORS as error:
            raise UserError(f"{picture} cannot be read as an image ({error}); give a PNG or JPEG file") from error
        return self.transform(image)

    @torch.inference_mode()
    def classify(self, picture: Picture, k: int = 5) -> list[tuple[str, float]]:
        """Return the `k` likeliest (class name, probability) of an image, likeliest first."""
        logits = self.network(self.read(picture)[None].to(self.device))
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise UserError(f"model: {type(self.network).__name__} gives no class scores; name a classifier")
        probabilities, classes = logits.float().softmax(-1)[0].topk(min(k, logits.shape[-1]))
        names = numbered(self.class_names, logits.shape[-1])
        return [(names[c], p) for c, p in zip(classes.tolist(), probabilities.tolist())]


def from_checkpoint(
    weights: str | Path, device: str | torch.device | None = None, size: tuple[int, int] | None = None
) -> ImageModel:
    """Return the network that the trainer wrote to a checkpoint, with its transform and class names.

    The averaged weights are used where the checkpoint has them. Classes are numbers where it names fewer than the model
    tells apart. `size` is another (height, width) of images than the trained one. Raises `CheckpointError` for a file
    without a configuration or with weights that do not fit it.
    """
    payload = load_checkpoint(weights)
    config = payload.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("MODEL"), dict):
        raise CheckpointError(f"{weights} holds no configuration; {_NEXT_STEP}")
    chosen = choose_device(device)
    try:
        network: nn.Module = model_from_config(config)
        transform = evaluation_transform(with_size(config, size))
        mode = image_mode(input_channels(config))
        count = int(config["MODEL"]["NUM_CLASSES"])
    except UserError as error:
        raise CheckpointError(f"{weights}: {error}") from error
    except KeyError as error:
        raise CheckpointError(f"{weights}: its configuration lacks {error}; {_NEXT_STEP}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{weights}: its configuration is damaged ({error}); {_NEXT_STEP}") from error
    load_weights(network, payload, prefer_ema=True, quiet=True)
    return ImageModel(network.to(chosen).eval(), transform, mode, _names(payload, count), chosen)


def _names(payload: Mapping[str, Any], count: int) -> list[str]:
    named = payload.get("class_names")
    names = [str(name) for name in named] if isinstance(named, list | tuple) else []
    return described(numbered(names, count))


def from_network(
    network: nn.Module, device: str | torch.device | None = None, size: tuple[int, int] | None = None
) -> ImageModel:
    """Return `network` itself, put into evaluation, with the transform that timm keeps for it or ImageNet's.

    None leaves it on its device. `size` is another (height, width) of images than the network's own. The classes have
    ImageNet's names where there are 1000 of them.
    """
    from timm.data import create_transform, resolve_data_config

    first = next(network.parameters(), torch.empty(0))
    chosen = first.device if device is None else choose_device(device)
    settings: Any = resolve_data_config({}, model=network)
    if size is not None:
        settings["input_size"] = (settings["input_size"][0], *size)
    transform: Any = create_transform(**settings, is_training=False)
    mode = image_mode(int(settings["input_size"][0]))
    count = int(getattr(network, "num_classes", 0) or 0)
    names = imagenet_names() if count == 1000 else numbered((), count)
    return ImageModel(network.to(chosen).eval(), transform, mode, names, chosen)


def from_name(name: str, weights: str | Path | None = None, device: str | torch.device | None = None) -> ImageModel:
    """Return a model of this package by name, with its released weights or those of a file.

    A file brings its number of classes and, if the trainer wrote it, their names. Raises `UserError` for an unknown
    name, `CheckpointError` where the weights cannot be had or do not fit.
    """
    from vmamba import create_model

    if weights is None:
        return from_network(create_model(name, pretrained=True), device or "auto")
    payload = load_checkpoint(weights)
    classes = classes_of(payload) or 1000
    network = create_model(name, num_classes=classes)
    load_weights(network, payload, prefer_ema=True, quiet=True)
    found = from_network(network, device or "auto")
    if payload.get("class_names"):
        found.class_names = _names(payload, classes)
    return found


def classes_of(payload: Mapping[str, Any]) -> int | None:
    """Return how many classes the weights of a checkpoint tell apart, None where they have no linear head."""
    from vmamba.weights import find_state_dict

    state = find_state_dict(payload, prefer_ema=True)
    heads = [v for k, v in state.items() if k.endswith(("head.weight", "head.fc.weight")) or k == "fc.weight"]
    return int(heads[-1].shape[0]) if heads else None


def open_model(
    model: str | nn.Module | None = None,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
) -> ImageModel:
    """Return the `ImageModel` for a network, a name (with released weights, or those of a file), or a checkpoint alone.

    The last one opened by name or file is kept, so that calls in a loop do not read it again.
    """
    if isinstance(model, nn.Module):
        if weights is not None:
            raise UserError("weights: a network brings its own; load them with vmamba.weights.load_weights before")
        return from_network(model, device)
    if model is None and weights is None:
        raise UserError("model, weights: name a model of vmamba.list_models(), a checkpoint of the trainer, or both")
    if model is not None and not isinstance(model, str):
        raise UserError(f"model: expected a name or a network, got {type(model).__name__}")
    stamp = Path(weights).stat().st_mtime_ns if weights is not None and Path(weights).is_file() else 0
    return _opened(model, None if weights is None else str(weights), str(device or "auto"), stamp)


@lru_cache(maxsize=1)
def _opened(model: str | None, weights: str | None, device: str, stamp: int) -> ImageModel:
    if model is not None:
        return from_name(model, weights, device)
    assert weights is not None
    return from_checkpoint(weights, device)


def one_or_more(pictures: Picture | Sequence[Picture]) -> list[Picture]:
    """Return a list of what may be one picture or several; `UserError` if there is none."""
    found = [pictures] if isinstance(pictures, str | Path | Image.Image) else list(pictures)
    if not found:
        raise UserError("images: there is none; give a path, a PIL image or several of them")
    return found
