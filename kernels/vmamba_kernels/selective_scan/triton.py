"""The selective scan by Triton: what the kernels of the files beside this one are told, and their second stages."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from .layout import chunk_length, empty_projection, empty_sequence
from .triton_backward import gradients_kernel, pull_kernel
from .triton_chunks import block_of, join
from .triton_forward import forward_kernel

TILE, GRADIENTS_TILE = 16, 8  # steps that a thread holds: the gradients have twice as much to hold of each


class _Call(NamedTuple):
    """The sizes of a call, and how it is cut into programs: chunks of steps, blocks of BC channels of a group."""

    batch: int
    KC: int
    L: int
    N: int
    K: int
    shared: int
    chunk: int

    @staticmethod
    def of(u: Tensor, delta: Tensor, B: Tensor) -> _Call:
        batch, KC, L = u.shape
        K, N = B.shape[1:3]
        return _Call(batch, KC, L, N, K, KC // delta.shape[1], chunk_length(N, u.device.type))

    @property
    def width(self) -> int:
        return self.KC // self.K

    @property
    def chunks(self) -> int:
        return cdiv(self.L, self.chunk)

    @property
    def blocks(self) -> int:
        return cdiv(self.width, block_of(self.width))

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        return self.L, self.N, self.K, self.width, self.chunk

    def grid(self, chunks: int) -> tuple[int, int]:
        return self.batch * chunks * self.K, self.blocks

    def tile(self, steps: int = TILE) -> dict[str, int]:
        BC = block_of(self.width)
        return {"T": steps, "BC": BC, "num_warps": BC // 32, "num_stages": 1}


def _side_by_side(x: Tensor, shared: int = 1) -> Tensor:
    """x with its channels side by side, each `shared` times; a copy unless it lies so, its steps not too far apart."""
    if shared > 1:
        return x.transpose(1, 2).repeat_interleave(shared, 2).transpose(1, 2)
    if x.stride(1) == 1 and x.stride(2) * TILE < 2**31:
        return x
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _to_write(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """What the kernels write for the result x: x itself if it is so laid out and typed."""
    if x.shape[1] == channels and x.stride(1) == 1:
        return x
    return x.new_empty((x.shape[0], x.shape[2], channels), dtype=dtype).transpose(1, 2)


def _steps(*sequences: Tensor) -> list[int]:
    """The strides over images and steps."""
    return [stride for x in sequences for stride in (x.stride(0), x.stride(2))]


def _rows(B: Tensor, C: Tensor) -> Tensor:
    """B and C side by side, [B, K, L, 2, N]."""
    return torch.stack((B, C), 2).permute(0, 1, 4, 2, 3).contiguous()


def _dense(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.contiguous()


def _repeated(bias: Tensor | None, shared: int) -> Tensor | None:
    return _dense(bias) if bias is None or shared == 1 else bias.repeat_interleave(shared)


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    out_dtype: torch.dtype,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.forward`."""
    call = _Call.of(u, delta, B)
    batch, KC, _, N, *_ = call
    out = empty_sequence(u, out_dtype)
    y = _to_write(out, KC, out_dtype)
    states = A.new_empty(batch, call.chunks - 1, N, KC)
    carry = A.new_empty(batch, call.chunks, N, KC)
    u, delta, rows = _side_by_side(u), _side_by_side(delta, call.shared), _rows(B, C)
    A, D, delta_bias = A.contiguous(), _dense(D), _repeated(delta_bias, call.shared)
    total = A.new_empty(batch, call.chunks, KC)

    def launch(chunks: int, ends: bool) -> None:
        forward_kernel[call.grid(chunks)](
            u, delta, A, rows, D, delta_bias, states, total, carry, y, *call.sizes,
            *_steps(u, delta, y),
            HAS_D=D is not None, HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus, ENDS=ends, **call.tile(),
        )  # fmt: skip

    if batch:
        with torch.cuda.device_of(u):
            if call.chunks > 1:
                launch(call.chunks - 1, True)
                join(states, A, total, reverse=False)
            launch(call.chunks, False)
    last = carry[:, -1].transpose(1, 2).clone(memory_format=torch.contiguous_format)
    if y is not out:
        out.copy_(y)
    return out, last, states if save_states else states.new_empty(batch, 0, N, KC)


def backward(
    dout: Tensor,
    dlast_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    states: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference.backward`."""
    call = _Call.of(u, delta, B)
    batch, KC, _, N, _, shared, chunk = call
    programs = batch * call.chunks
    du, ddelta = empty_sequence(u, u.dtype), empty_sequence(delta, delta.dtype)
    dB, dC = empty_projection(B), empty_projection(C)
    dA = A.new_empty(programs, KC, N)
    dD, dbias = (A.new_empty(programs, 0 if w is None else KC) for w in (D, delta_bias))
    if batch:
        du_written = _to_write(du, KC, u.dtype)
        ddelta_written = _to_write(ddelta, KC, delta.dtype if shared == 1 else torch.float32)
        u, delta, dout = _side_by_side(u), _side_by_side(delta, shared), _side_by_side(dout)
        rows = _rows(B, C)
        d_rows = A.new_empty(call.blocks, *rows.shape)
        A, D, delta_bias, dlast = A.contiguous(), _dense(D), _repeated(delta_bias, shared), _dense(dlast_state)
        total = A.new_empty(batch, call.chunks, KC)
        pulled = A.new_empty(batch, call.chunks - 1, N, KC)
        entered = A.new_empty(programs, chunk // GRADIENTS_TILE, N, KC)
        carry = A.new_empty(programs, N, KC)
        options = {"HAS_BIAS": delta_bias is not None, "SOFTPLUS": delta_softplus}
        with torch.cuda.device_of(u):
            if call.chunks > 1:
                pull_kernel[call.grid(call.chunks - 1)](
                    delta, A, rows, delta_bias, dout, pulled, total, *call.sizes,
                    *_steps(delta, dout), **options, **call.tile(),
                )  # fmt: skip
                join(pulled, A, total, reverse=True, last=dlast)
            gradients_kernel[call.grid(call.chunks)](
                u, delta, A, rows, D, delta_bias, states.contiguous(), dout, dlast, pulled, entered, carry,
                du_written, ddelta_written, dA, d_rows, dD, dbias, *call.sizes,
                *_steps(u, delta, dout, du_written, ddelta_written),
                HAS_D=D is not None, HAS_LAST=dlast is not None, **options, **call.tile(GRADIENTS_TILE),
            )  # fmt: skip
        if du_written is not du:
            du.copy_(du_written)
        if ddelta_written is not ddelta:
            ddelta.copy_(ddelta_written.unflatten(1, (-1, shared)).sum(2) if shared > 1 else ddelta_written)
        d_rows = (d_rows[0] if call.blocks == 1 else d_rows.sum(0)).transpose(2, 4)
        dB.copy_(d_rows[:, :, :, 0])
        dC.copy_(d_rows[:, :, :, 1])
    dA, dD, dbias = (part.sum(0) for part in (dA, dD, dbias))
    return du, ddelta, dA, dB, dC, dD, dbias if delta_bias is None else dbias.view(-1, shared).sum(1)
