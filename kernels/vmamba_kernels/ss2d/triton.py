"""ss2d by Triton: what the kernels of the files beside this one are told, and their second stages.

Images of any strides are read where they lie, unless H and W cannot be seen as one axis. Every direction is launched
on its own and adds to what those before it left, in float32, so that neither sequences nor outputs of the size of K
images are stored. What is: the step sizes of all directions before softplus (`raw`, K images in float32), and in the
backward their gradient in the same place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from ..cross_scan.orders import order_map
from ..selective_scan.triton_chunks import block_of, join
from .arguments import Gradients, Inputs
from .layout import chunk_length, empty_image, positions_last, sizes, stored_states
from .triton_backward import gradients_kernel, pull_kernel
from .triton_dt import project_back_kernel, project_kernel
from .triton_forward import forward_kernel

TILE, GRADIENTS_TILE = 16, 8  # steps that a thread holds: the gradients have twice as much to hold of each
ROWS, RANKS = 64, 16  # steps, and ranks, of a matrix product
PRODUCT = {"ROWS": ROWS, "BC": 64, "RB": RANKS, "num_warps": 4, "num_stages": 1}
PRODUCT_BACK = PRODUCT | {"BC": 32, "num_warps": 8}


class _Blocks(NamedTuple):
    """How a call is cut into programs: chunks of steps, blocks of BC channels."""

    chunk: int
    chunks: int
    channels: int
    BC: int

    @property
    def parts(self) -> int:
        """What an image's chunks are to the matrix products."""
        return self.chunks * (self.chunk // ROWS)

    def tile(self, steps: int = TILE) -> dict[str, int]:
        return {"T": steps, "BC": self.BC, "num_warps": self.BC // 32, "num_stages": 1}


def _blocks(L: int, C: int, N: int, device: str) -> _Blocks:
    chunk, BC = chunk_length(N, device), block_of(C)
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


def _project(
    x_dbl: Tensor, dt_weight: Tensor, delta_bias: Tensor | None, maps: Tensor, d_state: int, blocks: _Blocks
) -> Tensor:
    """delta before its softplus, [K, B * chunks, chunk, C]; x_dbl is [B, L, J]."""
    batch, L, _ = x_dbl.shape
    K, C, R = dt_weight.shape
    raw = dt_weight.new_empty(K, batch * blocks.chunks, blocks.chunk, C)
    project_kernel[(batch * blocks.parts, cdiv(C, PRODUCT["BC"]), K)](
        x_dbl, dt_weight, delta_bias, maps, raw, L, C, R, d_state, blocks.parts, *x_dbl.stride()[:2],
        HAS_BIAS=delta_bias is not None, **PRODUCT,
    )  # fmt: skip
    return raw


def forward(inputs: Inputs, out_dtype: torch.dtype, save_states: bool) -> tuple[Tensor, Tensor]:
    """As `reference.forward`."""
    x, x_dbl, dt_weight, A, D, delta_bias, order, channel_first = inputs
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
    maps = order_map(order, H, W, x.device)
    total = A.new_empty(batch, blocks.chunks, K * C)
    carry = A.new_empty(batch * blocks.chunks, N, C)

    def launch(k: int, directions: int, chunks: int, written: Tensor, ends: bool) -> None:
        forward_kernel[(batch * chunks, blocks.channels, directions)](
            x, x_dbl, A, D, maps, states, total, carry, raw, y.parts, written, L, C, R, N, K, batch, blocks.chunk, k,
            *x.stride()[:2], *x_dbl.stride()[:2], *y.rows.stride()[:2],
            HAS_D=D is not None, ENDS=ends, ADD=k > 0, **blocks.tile(),
        )  # fmt: skip

    with torch.cuda.device_of(x):
        raw = _project(x_dbl, dt_weight, delta_bias, maps, N, blocks)
        if blocks.chunks > 1:
            launch(0, K, blocks.chunks - 1, y.parts, True)
            join(states, A, total, reverse=False)
        for k in range(K):
            launch(k, 1, blocks.chunks, y.rows if k == K - 1 else y.parts, False)
    return y.finish(channel_first), states if save_states else states.new_empty(batch, 0, N, K * C)


def backward(dy: Tensor, inputs: Inputs, states: Tensor) -> Gradients:
    """As `reference.backward`."""
    x, x_dbl, dt_weight, A, D, delta_bias, order, channel_first = inputs
    batch, C, H, W = sizes(x, channel_first)
    K, _, R = dt_weight.shape
    N, L = A.shape[1], H * W
    blocks = _blocks(L, C, N, x.device.type)
    programs = batch * blocks.chunks
    dA, dD = A.new_empty(programs, K * C, N), A.new_empty(programs, 0 if D is None else K * C)
    d_dt_weight = A.new_empty(batch * blocks.parts, K, C, R)
    dbias = A.new_empty(batch * blocks.parts, 0 if delta_bias is None else K * C)
    dx = _Result.like(x, x.dtype, channel_first, K)
    dx_dbl = _Result.like(x_dbl, x_dbl.dtype, channel_first, 1)
    if batch:
        # Gradients of B and C, [blocks of channels, B, L, K, 2N]: with one block they are those of x_dbl.
        rows = dx_dbl.rows.unflatten(2, (K, R + 2 * N))[..., R:]
        dp = rows[None] if blocks.channels == 1 else A.new_empty(blocks.channels, *rows.shape)
        x, x_dbl, dy = _rows(x, channel_first), _rows(x_dbl, channel_first), _rows(dy, channel_first)
        dt_weight, A = dt_weight.contiguous(), A.contiguous()
        D, delta_bias, states = _dense(D), _dense(delta_bias), states.contiguous()
        maps = order_map(order, H, W, x.device)
        total = A.new_empty(batch, blocks.chunks, K * C)
        pulled = A.new_empty(batch, blocks.chunks - 1, N, K * C)
        entered = A.new_empty(programs, blocks.chunk // GRADIENTS_TILE, N, C)
        carry = A.new_empty(programs, N, C)
        with torch.cuda.device_of(x):
            raw = _project(x_dbl, dt_weight, delta_bias, maps, N, blocks)
            if blocks.chunks > 1:
                pull_kernel[(batch * (blocks.chunks - 1), blocks.channels, K)](
                    x_dbl, A, maps, dy, pulled, total, raw, L, C, R, N, K, blocks.chunk,
                    *x_dbl.stride()[:2], *dy.stride()[:2], **blocks.tile(),
                )  # fmt: skip
                join(pulled, A, total, reverse=True)
            for k in range(K):
                gradients_kernel[(programs, blocks.channels, 1)](
                    x, x_dbl, A, D, maps, states, dy, pulled, entered, carry, raw, dx.parts,
                    dx.rows if k == K - 1 else dx.parts, dp, dA, dD, L, C, R, N, K, blocks.chunk, k,
                    *x.stride()[:2], *x_dbl.stride()[:2], *dy.stride()[:2], *dx.rows.stride()[:2],
                    dp.stride(0), dp.stride(1), dp.stride(3), dp.stride(2),
                    HAS_D=D is not None, ADD=k > 0, **blocks.tile(GRADIENTS_TILE),
                )  # fmt: skip
            project_back_kernel[(batch * blocks.parts, cdiv(R, RANKS), K)](
                raw, x_dbl, dt_weight, maps, dx_dbl.rows, d_dt_weight, dbias, L, C, R, N, blocks.parts,
                *x_dbl.stride()[:2], *dx_dbl.rows.stride()[:2],
                HAS_BIAS=delta_bias is not None, **PRODUCT_BACK,
            )  # fmt: skip
        if blocks.channels > 1:
            rows.copy_(dp.sum(0))
    dx_image, dx_dbl_image = dx.finish(channel_first), dx_dbl.finish(channel_first)
    return dx_image, dx_dbl_image, d_dt_weight.sum(0), dA.sum(0), dD.sum(0), dbias.sum(0)
