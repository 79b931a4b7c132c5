"""Models and images that have shapes but no memory, for passes that compute nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from vmamba.errors import UserError

CHANNELS = 3


def input_channels_of(model: nn.Module) -> int:
    """Return how many channels a model's images have: its own word, timm's, or its first convolution's."""
    own = getattr(model, "in_chans", None)
    if isinstance(own, int):
        return own
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return first.in_channels if first is not None else CHANNELS


@contextmanager
def without_memory(model: nn.Module, device: str = "cpu") -> Iterator[FakeTensorMode]:
    """The mode in which `model` runs on fake tensors, in evaluation; its hooks, training flags and weights are kept.

    Weights on "meta", which run nowhere, stand on `device` for the time being. A model of real weights stays untouched.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    trained = [m for m in model.modules() if m.training]
    swapped: list[tuple[dict[str, Any], str, Tensor]] = []
    model.eval()
    try:
        for module in model.modules():
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for table in tables:
                for name, tensor in table.items():
                    if tensor is not None and tensor.is_meta and not isinstance(tensor, FakeTensor):
                        swapped.append((table, name, tensor))
                        table[name] = _moved(tensor, mode, device)
        yield mode
    finally:
        for table, name, tensor in swapped:
            table[name] = tensor
        for module in trained:
            module.training = True


def _moved(tensor: Tensor, mode: FakeTensorMode, device: str) -> Tensor:
    with mode:
        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def image_shape(model: nn.Module, size: int | tuple[int, int], batch: int) -> tuple[int, int, int, int]:
    """Return [B, C, H, W] of a batch for `model`, whose size is an int or a pair; `UserError` for any other."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise UserError(f"size: expected a positive int or (height, width), got {size}")
    if batch < 1:
        raise UserError(f"batch: expected at least 1, got {batch}")
    return batch, input_channels_of(model), *pair


def images(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return fake images of the model's type and device; call it inside the mode of `without_memory`."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(()))
    return torch.empty(shape, dtype=like.dtype, device="cpu" if like.is_meta else like.device)


def run(model: nn.Module, x: Tensor) -> object:
    """Return what the model makes of fake images; a refusal of their size becomes a `UserError`."""
    try:
        return model(x)
    except (ValueError, RuntimeError, AssertionError, IndexError) as error:
        name = type(model).__name__
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"size: {name} does not run on images {tuple(x.shape)}: {reason}") from error


def check_size(model: nn.Module, size: int | tuple[int, int]) -> None:
    """Run `model` on one fake image, which computes nothing; `UserError` where it does not run at that size."""
    shape = image_shape(model, size, 1)
    with torch.no_grad(), without_memory(model) as mode, mode:
        run(model, images(model, shape))
