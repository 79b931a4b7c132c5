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
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        return self.L, self.N, self.K, self.width, self.shared, self.chunk

    def grid(self, chunks: int) -> tuple[int, int]:
        return self.batch * chunks * self.K, self.blocks

    def tile(self, steps: int = TILE) -> dict[str, int]:
        BC = block_of(self.width)
        return {"T": steps, "BC": BC, "num_warps": BC // 32, "num_stages": 1}


def _near(x: Tensor) -> Tensor:
    """x, or a copy where so few steps as a tile has lie further apart than 32 bits count."""
    return x if x.stride(-1) * TILE < 2**31 else x.contiguous()


def _dense(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.contiguous()


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
    y = empty_sequence(u, out_dtype)
    states = A.new_empty(batch, call.chunks - 1, N, KC)
    carry = A.new_empty(batch, call.chunks, N, KC)
    u, delta, B, C = map(_near, (u, delta, B, C))
    A, D, delta_bias = A.contiguous(), _dense(D), _dense(delta_bias)
    total = A.new_empty(batch, call.chunks, KC)

    def launch(chunks: int, ends: bool) -> None:
        forward_kernel[call.grid(chunks)](
            u, delta, A, B, C, D, delta_bias, states, total, carry, y, *call.sizes,
            *u.stride(), *delta.stride(), *B.stride(), *C.stride(), *y.stride(),
            HAS_D=D is not None, HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus, ENDS=ends, **call.tile(),
        )  # fmt: skip

    if batch:
        with torch.cuda.device_of(u):
            if call.chunks > 1:
                launch(call.chunks - 1, True)
                join(states, A, total, reverse=False)
            launch(call.chunks, False)
    last = carry[:, -1].transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return y, last, states if save_states else states.new_empty(batch, 0, N, KC)


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
        own = ddelta if shared == 1 else empty_sequence(u, torch.float32)
        parts = [dB[None], dC[None]]  # [blocks of channels, B, K, N, L]
        if call.blocks > 1:
            parts = list(A.new_empty(2, call.blocks, *dB.shape))
        u, delta, B, C, dout = map(_near, (u, delta, B, C, dout))
        A, D, delta_bias, dlast = A.contiguous(), _dense(D), _dense(delta_bias), _dense(dlast_state)
        total = A.new_empty(batch, call.chunks, KC)
        pulled = A.new_empty(batch, call.chunks - 1, N, KC)
        entered = A.new_empty(programs, chunk // GRADIENTS_TILE, N, KC)
        carry = A.new_empty(programs, N, KC)
        options = {"HAS_BIAS": delta_bias is not None, "SOFTPLUS": delta_softplus}
        with torch.cuda.device_of(u):
            if call.chunks > 1:
                pull_kernel[call.grid(call.chunks - 1)](
                    delta, A, C, delta_bias, dout, pulled, total, *call.sizes,
                    *delta.stride(), *C.stride(), *dout.stride(), **options, **call.tile(),
                )  # fmt: skip
                join(pulled, A, total, reverse=True, last=dlast)
            gradients_kernel[call.grid(call.chunks)](
                u, delta, A, B, C, D, delta_bias, states.contiguous(), dout, dlast, pulled, entered, carry,
                du, own, dA, *parts, dD, dbias, *call.sizes, *u.stride(), *delta.stride(), *B.stride(), *C.stride(),
                *dout.stride(), *du.stride(), *own.stride(), *parts[0].stride(), *parts[1].stride()[1:],
                HAS_D=D is not None, HAS_LAST=dlast is not None, **options, **call.tile(GRADIENTS_TILE),
            )  # fmt: skip
        if own is not ddelta:
            ddelta.copy_(own.unflatten(1, (-1, shared)).sum(2))
        if call.blocks > 1:
            dB.copy_(parts[0].sum(0))
            dC.copy_(parts[1].sum(0))
    dA, dD, dbias = (part.sum(0) for part in (dA, dD, dbias))
    return du, ddelta, dA, dB, dC, dD, dbias if delta_bias is None else dbias.view(-1, shared).sum(1)
