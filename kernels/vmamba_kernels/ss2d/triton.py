"""ss2d by Triton: what the kernels of `triton_forward.py` and `triton_backward.py` are told, and their second stages.

Images of any strides are read where they lie, unless H and W cannot be seen as one axis. Every direction is launched
on its own and adds to what those before it left, in float32, so that nothing of the size of K images is ever stored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from ..cross_scan.orders import order_map
from ..selective_scan.triton_chunks import join
from .layout import chunk_length, empty_image, positions_last, sizes, stored_states
from .triton_backward import gradients_kernel, pull_kernel
from .triton_forward import forward_kernel

TILE = 16  # steps: the shortest that a matrix product takes


class _Blocks(NamedTuple):
    """How a call is cut into programs: chunks of steps, tiles of T steps, blocks of BC channels and of RB ranks."""

    chunk: int
    chunks: int
    channels: int
    BC: int
    RB: int

    @property
    def tile(self) -> dict[str, int]:
        return {"T": TILE, "BC": self.BC, "RB": self.RB, "num_warps": self.BC // 32, "num_stages": 1}


def _blocks(L: int, C: int, R: int, N: int) -> _Blocks:
    """A warp for each 32 channels, and the widest block that adds no empty ones."""
    chunk = chunk_length(N)
    BC = next(width for width in (128, 64, 32) if -C % width == -C % 32)
    return _Blocks(chunk, cdiv(L, chunk), cdiv(C, BC), BC, min(64, max(16, next_power_of_2(R))))


def _image(x: Tensor, channel_first: bool) -> tuple[Tensor, tuple[int, int, int]]:
    """An image as the kernels see it, and its strides over images, positions and channels."""
    x = positions_last(x, channel_first)
    return x, (x.stride(0), x.stride(2), x.stride(1))


def _dense(*weights: Tensor | None) -> list[Tensor | None]:
    return [None if w is None else w.contiguous() for w in weights]


def forward(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    order: str,
    channel_first: bool,
    out_dtype: torch.dtype,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """As `reference.forward`."""
    batch, C, H, W = sizes(x, channel_first)
    K, _, R = dt_weight.shape
    N, L = A.shape[1], H * W
    blocks = _blocks(L, C, R, N)
    y = empty_image(x, out_dtype, channel_first)
    states = A.new_empty(batch, stored_states(L, N), N, K * C)
    if batch == 0:
        return y, states if save_states else states.new_empty(0, 0, N, K * C)
    narrow = out_dtype is not torch.float32 and K > 1
    partial = empty_image(x, torch.float32, channel_first) if narrow else y
    y_view, y_strides = _image(y, channel_first)
    partial_view, _ = _image(partial, channel_first)
    x, x_strides = _image(x, channel_first)
    x_dbl, p_strides = _image(x_dbl, channel_first)
    dt_weight, A, D, delta_bias = _dense(dt_weight, A, D, delta_bias)
    tensors = (x, x_dbl, dt_weight, A, D, delta_bias, order_map(order, H, W, x.device), states)
    total = A.new_empty(batch, blocks.chunks, K * C)
    carry = A.new_empty(batch * blocks.chunks, N, C)

    def launch(k: int, directions: int, chunks: int, written: Tensor, ends: bool) -> None:
        forward_kernel[(batch * chunks, blocks.channels, directions)](
            *tensors, total, carry, partial_view, written, L, C, R, N, K, blocks.chunk, k,
            *x_strides, *p_strides, *y_strides,
            HAS_D=D is not None, HAS_BIAS=delta_bias is not None, ENDS=ends, ADD=k > 0, **blocks.tile,
        )  # fmt: skip

    with torch.cuda.device_of(x):
        if blocks.chunks > 1:
            launch(0, K, blocks.chunks - 1, partial_view, True)
            join(states, A, total, reverse=False)
        for k in range(K):
            launch(k, 1, blocks.chunks, y_view if k == K - 1 else partial_view, False)
    return y, states if save_states else states.new_empty(batch, 0, N, K * C)


def backward(
    dy: Tensor,
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    states: Tensor,
    order: str,
    channel_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference.backward`."""
    batch, C, H, W = sizes(x, channel_first)
    K, _, R = dt_weight.shape
    N, L = A.shape[1], H * W
    blocks = _blocks(L, C, R, N)
    dx, dx_dbl = empty_image(x, x.dtype, channel_first), empty_image(x_dbl, x_dbl.dtype, channel_first)
    programs = batch * blocks.chunks
    weights = [A.new_empty(programs, *size) for size in ((K, C, R), (K * C, N))]
    weights += [A.new_empty(programs, K * C if w is not None else 0) for w in (D, delta_bias)]
    if batch:
        summed = dx if K == 1 or dx.dtype is torch.float32 else empty_image(x, torch.float32, channel_first)
        dp_view, dp_strides = _image(dx_dbl, channel_first)
        if blocks.channels > 1:
            parts = A.new_empty(blocks.channels, batch, L, dp_view.shape[1])
            dp, dp_strides = parts, (*parts.stride(),)
        else:
            dp, dp_strides = dp_view, (0, *dp_strides)
        dx_view, dx_strides = _image(dx, channel_first)
        summed_view, _ = _image(summed, channel_first)
        dy_view, dy_strides = _image(dy, channel_first)
        x, x_strides = _image(x, channel_first)
        x_dbl, p_strides = _image(x_dbl, channel_first)
        dt_weight, A, D, delta_bias = _dense(dt_weight, A, D, delta_bias)
        maps = order_map(order, H, W, x.device)
        total = A.new_empty(batch, blocks.chunks, K * C)
        pulled = A.new_empty(batch, blocks.chunks - 1, N, K * C)
        entered = A.new_empty(programs, blocks.chunk // TILE, N, C)
        carry = A.new_empty(programs, N, C)
        has_bias = delta_bias is not None
        with torch.cuda.device_of(x):
            if blocks.chunks > 1:
                pull_kernel[(batch * (blocks.chunks - 1), blocks.channels, K)](
                    x_dbl, dt_weight, A, delta_bias, maps, dy_view, pulled, total, L, C, R, N, K, blocks.chunk,
                    *p_strides, *dy_strides, HAS_BIAS=has_bias, **blocks.tile,
                )  # fmt: skip
                join(pulled, A, total, reverse=True)
            for k in range(K):
                gradients_kernel[(programs, blocks.channels, 1)](
                    x, x_dbl, dt_weight, A, D, delta_bias, maps, states.contiguous(), dy_view, pulled, entered, carry,
                    summed_view, dx_view if k == K - 1 else summed_view, dp, *weights,
                    L, C, R, N, K, blocks.chunk, k, *x_strides, *p_strides, *dy_strides, *dx_strides, *dp_strides,
                    HAS_D=D is not None, HAS_BIAS=has_bias, ADD=k > 0, **blocks.tile,
                )  # fmt: skip
        if blocks.channels > 1:
            dp_view.copy_(parts.sum(0).transpose(1, 2))
    return dx, dx_dbl, *(part.sum(0) for part in weights)
