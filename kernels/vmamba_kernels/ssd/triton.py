"""The state-space dual scan on a GPU, by the portable kernels of `triton_kernels.py`.

The forward makes the step sizes and sums of the decay, what each chunk adds to the state, the recurrence over the
chunks, and the outputs. The backward repeats the first three, runs the recurrence of the gradients back, and makes the
gradients of each chunk by head and by group; sums over the heads of a group are kept in registers. There are no
atomics, and sums over chunks and images are taken by PyTorch, so the results are the same bits every time.

Sequences are read where they are if their last axis is dense, and copied otherwise. float64 is not served.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from .arguments import Gradients, Inputs
from .triton_kernels import (
    chunk_states_kernel,
    group_gradients_kernel,
    head_gradients_kernel,
    outputs_kernel,
    pass_states_kernel,
    step_gradients_kernel,
    steps_kernel,
)

_STATE_BLOCK = 256
# A program takes the heads of a group in turn as long as that many programs are left to fill the GPU.
_ENOUGH_PROGRAMS = 512


class _Shape(NamedTuple):
    batch: int
    length: int
    chunks: int
    heads: int
    groups: int
    width: int
    d_state: int
    Q: int
    BH: int

    @property
    def per_group(self) -> int:
        return self.heads // self.groups

    @property
    def per_program(self) -> int:
        """The largest divisor of the heads of a group that leaves enough programs."""
        fits = [
            n
            for n in range(1, self.per_group + 1)
            if self.per_group % n == 0 and self.batch * self.chunks * (self.heads // n) >= _ENOUGH_PROGRAMS
        ]
        return max(fits, default=1)


def _shape(x: Tensor, B: Tensor, chunk: int) -> _Shape:
    """The sizes; a chunk is a power of 2 from 16 to 64 steps, so that its squares stay in registers."""
    batch, length, heads, width = x.shape
    groups, d_state = B.shape[2:]
    Q = min(64, max(16, next_power_of_2(min(chunk, length))))
    return _Shape(batch, length, cdiv(length, Q), heads, groups, width, d_state, Q, min(16, next_power_of_2(heads)))


def _tiles(s: _Shape, BP: int, BN: int) -> dict[str, Any]:
    """Tiles of at most BP channels and BN states, how products are taken, and the threads for them.

    Products are exact float32, or by tensor cores in TF32 where `torch.set_float32_matmul_precision` allows it.
    """
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    fitted = {name: min(most, max(16, next_power_of_2(size))) for name, most, size in (("BP", BP, s.width),
              ("BN", BN, s.d_state))}  # fmt: skip
    return {"PRECISION": precision, "Q": s.Q, **fitted, "num_warps": 8 if s.Q == 64 else 4, "num_stages": 1}


def _programs(s: _Shape) -> int:
    """Programs that share the chunks, each with some heads of a group."""
    return s.batch * s.chunks * (s.heads // s.per_program)


def _stored_as(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type that kernels store results of `dtype` in: the interpreter cuts bfloat16 off, and does not round it."""
    return torch.float32 if device.type == "cpu" and dtype is torch.bfloat16 else dtype


def _dense(x: Tensor) -> Tensor:
    """`x` with its last axis dense."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _strides(x: Tensor) -> tuple[int, ...]:
    """Of the batch, time and head axes."""
    return x.stride()[:3]


class _Steps(NamedTuple):
    """Step sizes and the sums of the decay, [B, H, c * Q] in float32."""

    size: Tensor
    high: Tensor
    low: Tensor


def _readable(inputs: Inputs) -> Inputs:
    """The inputs as the kernels read them."""
    x, _, A, B, C, D, dt_bias, _ = inputs[:8]
    D, dt_bias = (None if t is None else t.contiguous() for t in (D, dt_bias))
    return inputs._replace(x=_dense(x), A=_dense(A), B=_dense(B), C=_dense(C), D=D, dt_bias=dt_bias)


def _steps(inputs: Inputs, s: _Shape) -> _Steps:
    dt, A, dt_bias = inputs.dt, inputs.A, inputs.dt_bias
    steps = _Steps(*(A.new_empty(s.batch, s.heads, s.chunks * s.Q) for _ in range(3)))
    steps_kernel[(s.batch * s.chunks * cdiv(s.heads, s.BH),)](
        dt, A if dt_bias is None else dt_bias, A, *steps,
        *_strides(dt), s.length, s.chunks, s.heads, inputs.dt_min, inputs.dt_max,
        SOFTPLUS=inputs.dt_softplus, HAS_BIAS=dt_bias is not None, Q=s.Q, BH=s.BH, num_stages=1,
    )  # fmt: skip
    return steps


def _states(
    value: Tensor, projection: Tensor, steps: _Steps, first: Tensor | None, s: _Shape, reverse: bool
) -> tuple[Tensor, Tensor]:
    """The states [B, c, H, P, N] before each chunk and the last; reversed, the gradients after each, of the first."""
    states = steps.size.new_empty(s.batch, s.chunks, s.heads, s.width, s.d_state)
    last = steps.size.new_empty(s.batch, s.heads, s.width, s.d_state)
    tiles = _tiles(s, 32, 32)
    per_state = cdiv(s.width, tiles["BP"]) * cdiv(s.d_state, tiles["BN"])
    chunk_states_kernel[(s.batch * s.chunks * s.heads * per_state,)](
        value, projection, *steps, states,
        *_strides(value), *_strides(projection), s.length, s.chunks, s.heads, s.per_group, s.width, s.d_state,
        TO_END=not reverse, **tiles,
    )  # fmt: skip
    numel = s.width * s.d_state
    pass_states_kernel[(s.batch * s.heads * cdiv(numel, _STATE_BLOCK),)](
        states, states if first is None else first.to(states.dtype).contiguous(), last, steps.high,
        s.chunks, s.heads, numel,
        REVERSE=reverse, HAS_FIRST=first is not None, Q=s.Q, BLOCK=_STATE_BLOCK, num_stages=1,
    )  # fmt: skip
    return states, last


def forward(inputs: Inputs, out_dtype: torch.dtype, chunk: int) -> tuple[Tensor, Tensor]:
    """Output [B, L, H, P] and last state [B, H, P, N]."""
    s = _shape(inputs.x, inputs.B, chunk)
    y = inputs.x.new_empty(inputs.x.shape, dtype=_stored_as(out_dtype, inputs.x.device))
    if s.batch == 0:
        return y.to(out_dtype), inputs.A.new_empty(0, s.heads, s.width, s.d_state)
    inputs = _readable(inputs)
    x, _, _, B, C, D, _, initial_states = inputs[:8]
    with torch.cuda.device_of(x):
        steps = _steps(inputs, s)
        states, last = _states(x, B, steps, initial_states, s, reverse=False)
        outputs_kernel[(_programs(s),)](
            x, B, C, x if D is None else D, *steps, states, y,
            *_strides(x), *_strides(B), *_strides(C),
            s.length, s.chunks, s.heads, s.per_group, s.per_program, s.width, s.d_state,
            HAS_D=D is not None, **_tiles(s, 32, 32),
        )  # fmt: skip
    return y.to(out_dtype), last


def backward(dy: Tensor, dlast: Tensor | None, inputs: Inputs, chunk: int) -> Gradients:
    """Gradients of x, dt, A, B, C, D, dt_bias, initial_states (the last three empty if absent)."""
    x, dt, A, B, C, D, dt_bias, initial_states = inputs[:8]
    s = _shape(x, B, chunk)
    if s.batch == 0:
        dD, dbias, dinitial = (A.new_zeros(0 if t is None else t.shape) for t in (D, dt_bias, initial_states))
        dx, ddt, dA, dB, dC = (torch.zeros_like(t) for t in (x, dt, A, B, C))
        return dx, ddt, dA, dB, dC, dD, dbias, dinitial
    inputs_as = _stored_as(x.dtype, x.device)
    dx, ddt = x.new_empty(x.shape, dtype=inputs_as), dt.new_empty(dt.shape, dtype=inputs_as)
    dy, inputs = _dense(dy), _readable(inputs)
    x, dt, A, B, C, D, dt_bias, initial_states = inputs[:8]
    splits = s.per_group // s.per_program
    projection_as = inputs_as if splits == 1 else A.dtype
    dB, dC = (B.new_empty((s.batch, splits, *B.shape[1:]), dtype=projection_as) for _ in range(2))
    dD_shares = A.new_empty((s.batch, s.chunks, s.heads, s.width) if D is not None else 0)
    shares = [A.new_empty(s.batch, s.chunks, s.heads) for _ in range(2)]

    with torch.cuda.device_of(x):
        steps = _steps(inputs, s)
        states, _ = _states(x, B, steps, initial_states, s, reverse=False)
        grads, dfirst = _states(dy, C, steps, dlast, s, reverse=True)
        dsize, da, da_next = (torch.empty_like(steps.size) for _ in range(3))
        given = (*_strides(dy), *_strides(x), *_strides(B), *_strides(C), s.length, s.chunks, s.heads)
        head_gradients_kernel[(_programs(s),)](
            dy, x, B, C, x if D is None else D, *steps, states, grads, dx, dD_shares, dsize, da, da_next,
            *given, s.per_group, s.per_program, s.width, s.d_state,
            HAS_D=D is not None, **_tiles(s, 16, 32),
        )  # fmt: skip
        tiles = _tiles(s, 16, 16)
        group_gradients_kernel[(_programs(s) * cdiv(s.d_state, tiles["BN"]),)](
            dy, x, B, C, *steps, states, grads, dB, dC,
            *given, s.groups, s.per_group, s.per_program, s.width, s.d_state, **tiles,
        )  # fmt: skip
        step_gradients_kernel[(s.batch * s.chunks * cdiv(s.heads, s.BH),)](
            dt, A if dt_bias is None else dt_bias, A, steps.size, dsize, da, da_next, ddt, *shares,
            *_strides(dt), s.length, s.chunks, s.heads, inputs.dt_min, inputs.dt_max,
            SOFTPLUS=inputs.dt_softplus, HAS_BIAS=dt_bias is not None, Q=s.Q, BH=s.BH, num_stages=1,
        )  # fmt: skip
    dB, dC = ((d[:, 0] if splits == 1 else d.sum(1)).to(B.dtype) for d in (dB, dC))
    return (
        dx.to(x.dtype),
        ddt.to(x.dtype),
        shares[0].sum((0, 1)),
        dB,
        dC,
        A.new_empty(0) if D is None else dD_shares.sum((0, 1)),
        A.new_empty(0) if dt_bias is None else shares[1].sum((0, 1)),
        A.new_empty(0) if initial_states is None else dfirst,
    )
