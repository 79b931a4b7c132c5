"""ss2d by a compiled library, which knows sequences and the map of an order, but neither images nor names of orders.

`vmamba::_ss2d_sequences` takes x [B, C, L] of any type and strides, x_dbl [B, L, J], the weights in float32 and the map
[K, L] of the order; a library implements it, and its backward, for the device it serves. On the CPU x_dbl is float32
and the map int64; on CUDA x_dbl has x's type and the map is that of `padded_map`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from .. import native
from ..cross_scan.orders import map_caches, order_map
from ..registration import library
from .arguments import Gradients, Inputs
from .layout import chunk_length, image_like, positions_last, sizes

_INPUTS = "Tensor x, Tensor x_dbl, Tensor dt_weight, Tensor A, Tensor? D, Tensor? delta_bias, Tensor maps"

library.define(f"_ss2d_sequences({_INPUTS}, int chunk, ScalarType out_dtype, bool save_states) -> (Tensor, Tensor)")
library.define(
    f"_ss2d_sequences_backward(Tensor dout, {_INPUTS}, Tensor states, int chunk)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


missing = native.asked_once("_ss2d_sequences")


@lru_cache(maxsize=128)
def padded_map(name: str, H: int, W: int, device: torch.device) -> Tensor:
    """int32 [K, L rounded up to 256]: `order_map` with the last position of each row repeated. Not to be written to."""
    with torch.inference_mode(False), torch.no_grad():
        found = order_map(name, H, W, device)
        last = found[:, -1:].expand(-1, -found.shape[1] % 256)
        return torch.cat([found, last], dim=1).to(torch.int32)


map_caches.append(padded_map)


def _map(order: str, H: int, W: int, device: torch.device) -> Tensor:
    return padded_map(order, H, W, device) if device.type == "cuda" else order_map(order, H, W, device)


def _sequence(x: Tensor, channel_first: bool) -> Tensor:
    """An image as [B, C, L]; for CUDA, whose lanes are channels, with these side by side."""
    x = positions_last(x, channel_first)
    if x.device.type != "cuda" or x.stride(1) == 1:
        return x
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _rows(x_dbl: Tensor, channel_first: bool) -> Tensor:
    """x_dbl as dense [B, L, J]; float32 on the CPU."""
    rows = x_dbl.flatten(2).transpose(1, 2) if channel_first else x_dbl.flatten(1, 2)
    return (rows if rows.device.type == "cuda" else rows.to(torch.float32)).contiguous()


@contextmanager
def _refusals_named(inputs: Inputs) -> Iterator[None]:
    """Turns the library's refusal of sizes that do not fit a GPU's shared memory into a ValueError with the remedy."""
    try:
        yield
    except RuntimeError as error:
        if "shared memory of this GPU" not in str(error):
            raise
        x_dbl, dt_weight, A = inputs.x_dbl, inputs.dt_weight, inputs.A
        raise ValueError(
            f"x_dbl: {tuple(x_dbl.shape)} beside dt_weight {tuple(dt_weight.shape)} and A {tuple(A.shape)}: on backend "
            f"'cuda' N = {A.shape[1]} and R = {dt_weight.shape[2]} do not fit into the shared memory of this GPU; "
            "name another backend, 'triton' or 'unfused'"
        ) from None


def _dense(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.contiguous()


def _tensors(inputs: Inputs) -> tuple[Tensor | None, ...]:
    """Those of the inputs as the library reads them, and the map of the order."""
    x, x_dbl, dt_weight, A, D, delta_bias, order, channel_first = inputs
    _, _, H, W = sizes(x, channel_first)
    images = (_sequence(x, channel_first), _rows(x_dbl, channel_first))
    weights = (dt_weight.contiguous(), A.contiguous(), _dense(D), _dense(delta_bias))
    return *images, *weights, _map(order, H, W, x.device)


def forward(inputs: Inputs, out_dtype: torch.dtype, save_states: bool) -> tuple[Tensor, Tensor]:
    """As `reference.forward`."""
    chunk = chunk_length(inputs.A.shape[1], inputs.x.device.type)
    with _refusals_named(inputs):
        y, states = torch.ops.vmamba._ss2d_sequences(*_tensors(inputs), chunk, out_dtype, save_states)
    return image_like(y, inputs.x, inputs.channel_first), states


def backward(dy: Tensor, inputs: Inputs, states: Tensor) -> Gradients:
    """As `reference.backward`."""
    x, x_dbl, channel_first = inputs.x, inputs.x_dbl, inputs.channel_first
    chunk = chunk_length(inputs.A.shape[1], x.device.type)
    with _refusals_named(inputs):
        dx, dx_dbl, *weights = torch.ops.vmamba._ss2d_sequences_backward(
            _sequence(dy, channel_first), *_tensors(inputs), states.contiguous(), chunk
        )
    dx_dbl = dx_dbl.transpose(1, 2).to(x_dbl.dtype)
    return image_like(dx, x, channel_first), image_like(dx_dbl, x_dbl, channel_first), *weights
