"""ss2d by Triton: what the kernels of `triton_forward.py` and `triton_backward.py` are told, and their second stages.

Images of any strides are read where they lie, unless H and W cannot be seen as one axis. Every direction is launched
on its own and adds to what those before it left, in float32, so that nothing of the size of K images is ever stored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from ..cross_scan.orders import order_map
from ..selective_scan.triton_chunks import join
from .layout import chunk_length, empty_image, positions_last, sizes, stored_states
from .triton_backward import gradients_kernel, pull_kernel
from .triton_forward import forward_kernel

TILE = 16  # steps, and ranks at a time: the least that a matrix product takes


class _Blocks(NamedTuple):
    """How a call is cut into programs: chunks of steps, blocks of BC channels."""

    chunk: int
    chunks: int
    channels: int
    BC: int

    @property
    def tile(self) -> dict[str, int]:
        return {"T": TILE, "BC": self.BC, "RB": TILE, "num_warps": self.BC // 32, "num_stages": 1}


def _blocks(L: int, C: int, N: int, device: str) -> _Blocks:
    """A warp for each 32 channels, and the widest block that adds no empty ones."""
    chunk = chunk_length(N, device)
    BC = next(width for width in (128, 64, 32) if -C % width == -C % 32)
    return _Blocks(chunk, cdiv(L, chunk), cdiv(C, BC), BC)


def _rows(x: Tensor, channel_first: bool) -> Tensor:
    """An image as [B, L, C] with the channels side by side: a view where it lies so, else a copy."""
    rows = positions_last(x, channel_first).transpose(1, 2)
    return rows if rows.stride(2) == 1 else rows.contiguous()


class _Result(NamedTuple):
    """An image to be computed: as it is handed out, as the kernels write it, and where they add up its parts."""

    image: Tensor
    rows: Tensor  # [B, L, C], a view of the image if that lies so
    parts: Tensor  # [B, L, C] in float32, the rows if these are

    @staticmethod
    def like(x: Tensor, dtype: torch.dtype, channel_first: bool, directions: int) -> _Result:
        image = empty_image(x, dtype, channel_first)
        rows = positions_last(image, channel_first).transpose(1, 2)
        if rows.stride(2) != 1:
            rows = torch.empty_like(rows, dtype=torch.float32, memory_format=torch.contiguous_format)
        one = directions == 1 or rows.dtype is torch.float32
        return _Result(image, rows, rows if one else torch.empty_like(rows, dtype=torch.float32))

    def finish(self, channel_first: bool) -> Tensor:
        """The image, with what the kernels wrote."""
        if self.rows.data_ptr() != self.image.data_ptr():
            positions_last(self.image, channel_first).copy_(self.rows.transpose(1, 2))
        return self.image


def _dense(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.contiguous()


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
    blocks = _blocks(L, C, N, x.device.type)
    y = _Result.like(x, out_dtype, channel_first, K)
    states = A.new_empty(batch, stored_states(L, N, x.device.type), N, K * C)
    if batch == 0:
        return y.image, states if save_states else states.new_empty(0, 0, N, K * C)
    x, x_dbl = _rows(x, channel_first), _rows(x_dbl, channel_first)
    dt_weight, A = dt_weight.contiguous(), A.contiguous()
    D, delta_bias = _dense(D), _dense(delta_bias)
    tensors = (x, x_dbl, dt_weight, A, D, delta_bias, order_map(order, H, W, x.device), states)
    total = A.new_empty(batch, blocks.chunks, K * C)
    carry = A.new_empty(batch * blocks.chunks, N, C)
    raw = A.new_empty(batch * max(blocks.chunks, K * (blocks.chunks - 1)), blocks.chunk, C)

    def launch(k: int, directions: int, chunks: int, written: Tensor, ends: bool) -> None:
        forward_kernel[(batch * chunks, blocks.channels, directions)](
            *tensors, total, carry, raw, y.parts, written, L, C, R, N, K, blocks.chunk, k,
            *x.stride()[:2], *x_dbl.stride()[:2], *y.rows.stride()[:2],
            HAS_D=D is not None, HAS_BIAS=delta_bias is not None, ENDS=ends, ADD=k > 0, **blocks.tile,
        )  # fmt: skip

    with torch.cuda.device_of(x):
        if blocks.chunks > 1:
            launch(0, K, blocks.chunks - 1, y.parts, True)
            join(states, A, total, reverse=False)
        for k in range(K):
            launch(k, 1, blocks.chunks, y.rows if k == K - 1 else y.parts, False)
    return y.finish(channel_first), states if save_states else states.new_empty(batch, 0, N, K * C)


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
    blocks = _blocks(L, C, N, x.device.type)
    programs = batch * blocks.chunks
    weights = [A.new_empty(programs, *size) for size in ((K, C, R), (K * C, N))]
    weights += [A.new_empty(programs, K * C if w is not None else 0) for w in (D, delta_bias)]
    dx = _Result.like(x, x.dtype, channel_first, K)
    dx_dbl = _Result.like(x_dbl, x_dbl.dtype, channel_first, 1)
    if batch:
        one = blocks.channels == 1
        dp = dx_dbl.rows[None] if one else A.new_empty(blocks.channels, *dx_dbl.rows.shape)
        x, x_dbl, dy = _rows(x, channel_first), _rows(x_dbl, channel_first), _rows(dy, channel_first)
        dt_weight, A = dt_weight.contiguous(), A.contiguous()
        D, delta_bias = _dense(D), _dense(delta_bias)
        maps = order_map(order, H, W, x.device)
        total = A.new_empty(batch, blocks.chunks, K * C)
        pulled = A.new_empty(batch, blocks.chunks - 1, N, K * C)
        entered = A.new_empty(programs, blocks.chunk // TILE, N, C)
        carry = A.new_empty(programs, N, C)
        raw = A.new_empty(batch * max(blocks.chunks, K * (blocks.chunks - 1)), blocks.chunk, C)
        has_bias = delta_bias is not None
        with torch.cuda.device_of(x):
            if blocks.chunks > 1:
                pull_kernel[(batch * (blocks.chunks - 1), blocks.channels, K)](
                    x_dbl, dt_weight, A, delta_bias, maps, dy, pulled, total, raw, L, C, R, N, K, blocks.chunk,
                    *x_dbl.stride()[:2], *dy.stride()[:2], HAS_BIAS=has_bias, **blocks.tile,
                )  # fmt: skip
                join(pulled, A, total, reverse=True)
            for k in range(K):
                gradients_kernel[(programs, blocks.channels, 1)](
                    x, x_dbl, dt_weight, A, D, delta_bias, maps, states.contiguous(), dy, pulled, entered, carry, raw,
                    dx.parts, dx.rows if k == K - 1 else dx.parts, dp, *weights, L, C, R, N, K, blocks.chunk, k,
                    *x.stride()[:2], *x_dbl.stride()[:2], *dy.stride()[:2], *dx.rows.stride()[:2], *dp.stride()[:3],
                    HAS_D=D is not None, HAS_BIAS=has_bias, ADD=k > 0, **blocks.tile,
                )  # fmt: skip
        if not one:
            dx_dbl.rows.copy_(dp.sum(0))
    d_dt_weight, dA, dD, dbias = (part.sum(0) for part in weights)
    return dx.finish(channel_first), dx_dbl.finish(channel_first), d_dt_weight, dA, dD, dbias
