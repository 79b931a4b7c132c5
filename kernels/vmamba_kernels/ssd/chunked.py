"""The state-space dual scan by chunks, in plain PyTorch: matrix products within a chunk, a short recurrence across.

With cs_t the sum of a_r = s_r A up to step t of a chunk of Q steps, u_s = s_s x_s and H the state before the chunk:

    M_ts = exp(cs_t - cs_s) for s <= t, else 0           W = (C B^T) * M
    y    = W u + exp(cs) * (C H^T)
    H'   = exp(cs_Q) H + (exp(cs_Q - cs) * u)^T B        the state after it

Every exponential is taken of a difference of sums, never as a ratio of exponentials, so that any decay stays finite.
The sums are made in float64 and kept as two float32 numbers: a difference of close sums is then exact to float32, even
after steps of huge decay. Steps of size 0, which change nothing, fill up the last chunk.

Shapes: B batch, c chunks of Q steps, G groups of R = H / G heads of width P, N states; m = chunks of all images.
Source: Dao and Gu, "Transformers are SSMs", 2024, section 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import Gradients, Inputs
from .reference import Steps, step_sizes, through_step_sizes

# Elements of the largest intermediate, [chunks, H, Q, Q], that is made at once: within the cache on a CPU.
_AT_ONCE = {"cpu": 1 << 18}
_AT_ONCE_ELSEWHERE = 1 << 26


class _Chunks(NamedTuple):
    """The inputs cut into chunks; views where the length is a multiple of the chunk."""

    x: Tensor  # [B, c, Q, G, R, P]
    B: Tensor  # [B, c, Q, G, N]
    C: Tensor  # [B, c, Q, G, N]
    size: Tensor  # [B, c, Q, G, R]  step sizes in the working type
    high: Tensor  # [B, c, G, R, Q]  cs, and what float32 leaves of it
    low: Tensor


def _cut(x: Tensor, chunk: int) -> Tensor:
    """[B, L, ...] as [B, c, Q, ...], the last chunk filled up with zeros."""
    missing = -x.shape[1] % chunk
    if missing:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    return x.unflatten(1, (x.shape[1] // chunk, chunk))


def _chunks(x: Tensor, steps: Steps, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> _Chunks:
    groups = B.shape[2]
    heads = (groups, A.shape[0] // groups)
    size = _cut(steps.size, chunk).unflatten(3, heads)
    sums = (size * A.view(heads)).to(torch.float64).movedim(2, 4).cumsum(-1)
    high = sums.to(A.dtype)
    low = (sums - high).to(A.dtype)
    return _Chunks(_cut(x, chunk).unflatten(3, heads), _cut(B, chunk), _cut(C, chunk), size, high, low)


def _slabs(parts: _Chunks, chunk: int) -> Iterator[tuple[slice, slice]]:
    """(images, chunks) index pairs whose [.., H, Q, Q] fits at once."""
    batch, count, _, groups, per_group = parts.size.shape
    room = _AT_ONCE.get(parts.size.device.type, _AT_ONCE_ELSEWHERE)
    fitting = max(1, room // max(1, groups * per_group * chunk * chunk))
    images, chunks = max(1, fitting // count), min(count, fitting)
    for i in range(0, batch, images):
        for c in range(0, count, chunks):
            yield slice(i, i + images), slice(c, c + chunks)


def _take(tensor: Tensor, at: tuple[slice, slice], work: torch.dtype) -> Tensor:
    """The slab of [B, c, Q, G, ...] as [m, G, Q, ...] in the working type."""
    return tensor[at].flatten(0, 1).transpose(1, 2).to(work)


def _from_start(parts: _Chunks, at: tuple[slice, slice]) -> Tensor:
    """exp(cs_t) [m, G, Q, R]: the decay of the state before the chunk."""
    return parts.high[at].flatten(0, 1).exp().transpose(2, 3)


def _to_end(parts: _Chunks, at: tuple[slice, slice]) -> Tensor:
    """exp(cs_Q - cs_s) [m, G, Q, R]: the decay up to the end of the chunk."""
    high, low = parts.high[at].flatten(0, 1), parts.low[at].flatten(0, 1)
    return ((high[..., -1:] - high) + (low[..., -1:] - low)).exp().transpose(2, 3)


def _within(parts: _Chunks, at: tuple[slice, slice]) -> Tensor:
    """M [m, G, R, Q, Q]: the decay from step s to step t, 0 above the diagonal."""
    high, low = parts.high[at].flatten(0, 1), parts.low[at].flatten(0, 1)
    between = (high.unsqueeze(-1) - high.unsqueeze(-2)).add_(low.unsqueeze(-1) - low.unsqueeze(-2))
    chunk = between.shape[-1]
    future = torch.ones(chunk, chunk, dtype=torch.bool, device=between.device).triu(1)
    return between.masked_fill_(future, -torch.inf).exp_()


def _outer(weighted: Tensor, projection: Tensor) -> Tensor:
    """[m, G, R, P, N]: the sum over the steps of weighted [m, G, Q, R, P] times projection [m, G, Q, N]."""
    return (weighted.flatten(3).transpose(2, 3) @ projection).unflatten(2, weighted.shape[3:])


def _states_before(parts: _Chunks, A: Tensor, initial: Tensor | None, chunk: int) -> tuple[Tensor, Tensor]:
    """The states [c, B, G, R, P, N] before each chunk, and the last one [B, G, R, P, N]."""
    batch, count, _, groups, per_group, width = parts.x.shape
    states = A.new_empty(count, batch, groups, per_group, width, parts.B.shape[4])
    for at in _slabs(parts, chunk):
        u = _take(parts.x, at, A.dtype) * (_take(parts.size, at, A.dtype) * _to_end(parts, at)).unsqueeze(4)
        gained = _outer(u, _take(parts.B, at, A.dtype))
        states[at[1], at[0]] = gained.unflatten(0, parts.x[at].shape[:2]).transpose(0, 1)
    state = torch.zeros_like(states[0]) if initial is None else initial.reshape(states.shape[1:]).clone()
    decay = parts.high[..., -1].exp().transpose(0, 1)[..., None, None]  # [c, B, G, R, 1, 1]
    for c in range(count):
        after = torch.addcmul(states[c], decay[c], state)
        states[c] = state
        state = after
    return states, state


def _states_after(
    parts: _Chunks, dy: Tensor, A: Tensor, dlast: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients [c, B, G, R, P, N] of the states after each chunk, that of the first state, and the decays."""
    batch, count, _, groups, per_group, width = parts.x.shape
    grads = A.new_empty(count, batch, groups, per_group, width, parts.B.shape[4])
    for at in _slabs(parts, chunk):
        pushed = _take(dy, at, A.dtype) * _from_start(parts, at).unsqueeze(4)
        pulled = _outer(pushed, _take(parts.C, at, A.dtype))
        grads[at[1], at[0]] = pulled.unflatten(0, parts.x[at].shape[:2]).transpose(0, 1)
    grad = torch.zeros_like(grads[0]) if dlast is None else dlast.to(A.dtype).reshape(grads.shape[1:])
    decay = parts.high[..., -1].exp().transpose(0, 1)[..., None, None]
    for c in reversed(range(count)):
        before = torch.addcmul(grads[c], decay[c], grad)
        grads[c] = grad
        grad = before
    return grads, grad, decay


def forward(inputs: Inputs, out_dtype: torch.dtype, chunk: int) -> tuple[Tensor, Tensor]:
    """Output [B, L, H, P] and last state [B, H, P, N]."""
    x, _, A, B, C, D, _, initial_states = inputs[:8]
    batch, length, heads, width = x.shape
    work, chunk = A.dtype, min(chunk, length)
    with torch.autocast(x.device.type, enabled=False):
        steps = step_sizes(inputs)
        parts = _chunks(x, steps, A, B, C, chunk)
        skip = None if D is None else D.reshape(*parts.x.shape[3:])
        states, last = _states_before(parts, A, initial_states, chunk)
        out = x.new_empty(parts.x.shape, dtype=out_dtype)
        for at in _slabs(parts, chunk):
            wide_x, wide_C = _take(parts.x, at, work), _take(parts.C, at, work)
            wide_x_by_head = (wide_x * _take(parts.size, at, work).unsqueeze(4)).transpose(2, 3)
            products = (wide_C @ _take(parts.B, at, work).mT).unsqueeze(2) * _within(parts, at)  # W [m, G, R, Q, Q]
            y = (products @ wide_x_by_head).transpose(2, 3)  # [m, G, Q, R, P]
            before = states[at[1], at[0]].transpose(0, 1).flatten(0, 1)  # [m, G, R, P, N]
            carried = (wide_C @ before.flatten(2, 3).mT).unflatten(3, y.shape[3:])
            y = torch.addcmul(y, carried, _from_start(parts, at).unsqueeze(4))
            if skip is not None:
                y = torch.addcmul(y, wide_x, skip.unsqueeze(1))
            out[at] = y.transpose(1, 2).unflatten(0, out[at].shape[:2])
    y = out.flatten(1, 2)[:, :length].reshape(x.shape)
    return y.contiguous(), last.flatten(1, 2)


def backward(dy: Tensor, dlast: Tensor | None, inputs: Inputs, chunk: int) -> Gradients:
    """Gradients of x, dt, A, B, C, D, dt_bias, initial_states (the last three empty if absent).

    With K the gradient of the state after the chunk, e = exp(cs), w = exp(cs_Q - cs), dW = dy u^T, dG = dW * M and
    Z = dG * (C B^T), the share of each pair s < t in the logarithm of the decay between them:

        du = W^T dy + w * (B K^T)
        dC = dG B + (e * dy) H           summed over the heads of the group
        dB = dG^T C + (w * u) K          "
        da_r = sum of Z_ts over s < r <= t,  + sum over t >= r of <e dy, C H^T>_t,
               + sum over s < r of <w u, B K^T>_s,  + exp(cs_Q) <K, H>

    The sums of da are taken as they stand, pair by pair: differences of row and column sums would cancel.
    """
    x, dt, A, B, C, D, dt_bias, initial_states = inputs[:8]
    batch, length, heads, width = x.shape
    work, chunk = A.dtype, min(chunk, length)
    with torch.autocast(x.device.type, enabled=False):
        steps = step_sizes(inputs)
        parts = _chunks(x, steps, A, B, C, chunk)
        grouped = parts.x.shape[3:]
        cut_dy = _cut(dy, chunk).unflatten(3, grouped[:2])
        states, _ = _states_before(parts, A, initial_states, chunk)
        grads, dinitial, decay = _states_after(parts, cut_dy, A, dlast, chunk)
        through = (grads * states * decay).sum((4, 5))  # [c, B, G, R]

        dx, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (parts.x, parts.B, parts.C))
        dsize, da = torch.empty_like(parts.size), torch.empty_like(parts.size)
        dD = A.new_zeros(0 if D is None else grouped)
        skip = None if D is None else D.reshape(grouped)
        for at in _slabs(parts, chunk):
            wide_x, wide_dy, size = (_take(t, at, work) for t in (parts.x, cut_dy, parts.size))
            wide_B, wide_C = _take(parts.B, at, work), _take(parts.C, at, work)
            before, after = (s[at[1], at[0]].transpose(0, 1).flatten(0, 1).flatten(2, 3) for s in (states, grads))
            u = wide_x * size.unsqueeze(4)  # [m, G, Q, R, P]
            dy_by_head = wide_dy.transpose(2, 3)  # [m, G, R, Q, P]
            decays = _within(parts, at)  # M [m, G, R, Q, Q]
            products = wide_C @ wide_B.mT  # [m, G, Q, Q]
            du = ((products.unsqueeze(2) * decays).mT @ dy_by_head).transpose(2, 3)
            dproducts = (dy_by_head @ u.transpose(2, 3).mT).mul_(decays)
            dG = dproducts.sum(2)

            pushed = wide_dy * _from_start(parts, at).unsqueeze(4)
            to_end = _to_end(parts, at).unsqueeze(4)
            gained = u * to_end
            carried = (wide_C @ before.mT).unflatten(3, grouped[1:])
            pulled = (wide_B @ after.mT).unflatten(3, grouped[1:])
            du = torch.addcmul(du, pulled, to_end)

            ahead = dproducts.mul_(products.unsqueeze(2)).cumsum(-1).tril_(-1).sum(-2)  # [m, G, R, Q], of r = s + 1
            ahead = ahead.transpose(2, 3) + (gained * pulled).sum(4).cumsum(2)
            da_here = (pushed * carried).sum(4).flip(2).cumsum(2).flip(2)
            da_here[:, :, 1:] += ahead[:, :, :-1]
            da_here += through[at[1], at[0]].transpose(0, 1).flatten(0, 1).unsqueeze(2)

            dx_here = du * size.unsqueeze(4)
            if skip is not None:
                dx_here = torch.addcmul(dx_here, wide_dy, skip.unsqueeze(1))
                dD += (wide_dy * wide_x).sum((0, 2))
            shape = parts.x[at].shape[:2]
            dx[at] = dx_here.transpose(1, 2).unflatten(0, shape)
            dsize[at] = (du * wide_x).sum(4).transpose(1, 2).unflatten(0, shape)
            da[at] = da_here.transpose(1, 2).unflatten(0, shape)
            dB[at] = (dG.mT @ wide_C + gained.flatten(3) @ after).transpose(1, 2).unflatten(0, shape)
            dC[at] = (dG @ wide_B + pushed.flatten(3) @ before).transpose(1, 2).unflatten(0, shape)

        da = da.flatten(1, 2)[:, :length].flatten(2)
        dsize = dsize.flatten(1, 2)[:, :length].flatten(2) + A * da
        draw = through_step_sizes(dsize, steps, inputs)
        dA = (steps.size * da).sum((0, 1))
        dbias = A.new_empty(0) if dt_bias is None else draw.sum((0, 1))
    return (
        dx.flatten(1, 2)[:, :length].reshape(x.shape).contiguous(),
        draw.to(dt.dtype).contiguous(),
        dA,
        dB.flatten(1, 2)[:, :length].contiguous(),
        dC.flatten(1, 2)[:, :length].contiguous(),
        dD if D is None else dD.view(D.shape),
        dbias,
        A.new_empty(0) if initial_states is None else dinitial.flatten(1, 2),
    )
