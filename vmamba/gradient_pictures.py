"""Pictures of what a network looks at, from the gradient at the pixels of one image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn

from vmamba.errors import UserError


def class_gradient(network: nn.Module, x: Tensor, index: int | None = None) -> Tensor:
    """Return [H, W], the size of the gradient of a class's score (None: the likeliest) at the pixels of x [1, C, H, W].

    The largest absolute value over the channels, scaled to at most 1. Source: Simonyan et al., "Deep Inside
    Convolutional Networks", 2013.
    """

    def score(image: Tensor) -> Tensor:
        scores = network(image)[0]
        return scores[int(scores.argmax()) if index is None else index]

    return _size_of_gradient(score, x)


def receptive_field(network: nn.Module, x: Tensor, level: int = -1) -> Tensor:
    """Return [H, W], the size of the gradient of a stage's central position at the pixels of x [1, C, H, W].

    The gradient of the sum over the channels, its largest absolute value over the colours, scaled to at most 1. The
    field of one image: the effective receptive field of a network is its mean over many. Source: Luo et al.,
    "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", 2016.
    """
    at_centre = stage_centre(network, level)
    return _size_of_gradient(lambda image: at_centre(image)[0].sum(), x)


def stage_centre(network: nn.Module, level: int = -1) -> Callable[[Tensor], Tensor]:
    """Return the function from images [B, C, H, W] to the features [B, c] at the central position of a stage.

    Raises `UserError` for a network without ``forward_intermediates``, and for a stage that it does not have.
    """
    intermediates = getattr(network, "forward_intermediates", None)
    if not callable(intermediates):
        raise UserError(f"model: {type(network).__name__} has no forward_intermediates; name a model of vmamba or timm")
    stages = len(getattr(network, "feature_info", ()))
    if not -stages <= level < stages:
        raise UserError(f"level: {level} is not a stage; this model has 0 to {stages - 1}")

    def centre(images: Tensor) -> Tensor:
        (stage,) = intermediates(images, indices=[level % stages], intermediates_only=True)
        return stage[:, :, stage.shape[2] // 2, stage.shape[3] // 2]

    return centre


def _size_of_gradient(value, x: Tensor) -> Tensor:
    with torch.enable_grad():
        image = x.detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(value(image), image)
    size = gradient[0].abs().amax(0).float()
    return (size / size.max().clamp_min(torch.finfo(torch.float32).tiny)).cpu()


def overlay(picture: Image.Image, strength: Tensor) -> Image.Image:
    """Return `picture` at the size of `strength` [H, W], darkened, with the strength, in [0, 1], as warm light on it.

    The square root of the strength is drawn, which shows the weak outskirts too.
    """
    height, width = strength.shape
    grey = picture.convert("L").convert("RGB").resize((width, height))
    base = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(height, width, 3).float()
    light = strength.clamp(0, 1).sqrt()[..., None]
    glow = torch.cat([light * 255, light.square() * 190, light.pow(6) * 120], dim=2)
    mixed = (base * 0.45 * (1 - light) + glow).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(mixed.numpy())


def seen_by(transform, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the part of `picture` that a transform with resizing and cropping shows the network, in pixels."""
    from torchvision import transforms

    steps = [s for s in transform.transforms if not isinstance(s, transforms.Normalize)]
    value = picture
    for step in steps:
        if not isinstance(value, Image.Image):
            break
        shown = step(value)
        value = shown if isinstance(shown, Image.Image) else value
    return value.resize(size[::-1])
