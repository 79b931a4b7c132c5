"""The memory that activations take, found by following every storage of a fake forward from birth to death."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vmamba.counting.fake import image_shape, images, run, without_memory


@dataclass(frozen=True)
class Activations:
    """Bytes for a batch, without weights and gradients of weights.

    `inference`: the most that is alive at any moment of a forward without gradients, the images among it. `training`:
    what is alive when a forward with gradients ends, that is the images, the output and all that the backward needs.
    """

    inference: int
    training: int


def activation_memory(
    model: nn.Module, size: int | tuple[int, int] = 224, batch: int = 1, device: str = "cpu"
) -> Activations:
    """Return the activation memory of `model` for a batch of images, an int or (height, width) in size.

    Two forwards on fake tensors in the weights' type, with the operators' choice of backend on this machine; the
    storages they make are followed. Views add nothing, workspaces inside a kernel are not seen, dropout is off.
    `device` is where a model on "meta" is taken to be, "cpu" or "cuda"; it need not be there.
    """
    image = image_shape(model, size, batch)
    with without_memory(model, device) as mode, mode:
        with torch.no_grad(), _Live() as live:
            x = images(model, image)
            run(model, x)
        with torch.enable_grad(), _Live() as kept:
            x = images(model, image)
            output = run(model, x)
            held = kept.bytes
            del output
    return Activations(live.peak, held)


class _Live(TorchDispatchMode):
    """Adds a storage's bytes at the operator that makes it, and takes them off when the last reference goes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(value.alias_info is not None for value in func._schema.returns):
            return result  # a view, or an argument written in place
        given = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _key(tensor) not in given:
                self._born(tensor)
        return result

    def _born(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self.known:
            return
        size = storage.nbytes()
        self.known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
