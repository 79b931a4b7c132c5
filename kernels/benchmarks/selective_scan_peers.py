"""Other ways to compute the selective scan, for the benchmark: each maps the operator's arguments to y [B, KD, L].

They share the step size and the readout; what differs is how the recurrence h_l = a_l h_{l-1} + x_l is solved.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Recurrence = Callable[[Tensor, Tensor], Tensor]


def scan_by(recurrence: Recurrence, arguments: tuple[Tensor, ...]) -> Tensor:
    """y of u, delta, A, B, C, D, delta_bias with softplus; `recurrence` maps a, x [B, L, KD, N] to h."""
    u, delta, A, B, C, D, delta_bias = arguments
    groups, d_state = B.shape[1:3]
    batch, channels, length = u.shape
    grouped = (batch, length, groups, channels // groups, d_state)
    u = u.transpose(1, 2)
    dt = F.softplus(delta.transpose(1, 2) + delta_bias)
    drive = (dt * u).view(*grouped[:-1], 1) * B.permute(0, 3, 1, 2).unsqueeze(3)
    h = recurrence(torch.exp(dt.unsqueeze(-1) * A), drive.reshape(batch, length, channels, d_state))
    y = (h.view(grouped) * C.permute(0, 3, 1, 2).unsqueeze(3)).sum(-1).view(batch, length, channels)
    return (y + D * u).transpose(1, 2)


def sequential_loop(*arguments: Tensor) -> Tensor:
    """The published reference: exp(dt A) and dt B u as whole [B, KD, L, N] tensors, then one step of Python a time."""
    u, delta, A, B, C, D, delta_bias = arguments
    per_group = u.shape[1] // B.shape[1]
    dt = F.softplus(delta + delta_bias[:, None])
    B, C = B.repeat_interleave(per_group, 1), C.repeat_interleave(per_group, 1)
    a = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    x = torch.einsum("bdl,bdnl,bdl->bdln", dt, B, u)
    h = A.new_zeros(u.shape[0], *A.shape)
    steps = []
    for step in range(u.shape[2]):
        h = a[:, :, step] * h + x[:, :, step]
        steps.append(torch.einsum("bdn,bdn->bd", h, C[..., step]))
    return torch.stack(steps, 2) + u * D[:, None]


def pscan(*arguments: Tensor) -> Tensor:
    """The parallel scan of PyPI's mambapy (Blelloch, in place, forward and backward written by hand)."""
    from mambapy.pscan import pscan as parallel_scan

    return scan_by(parallel_scan, arguments)


def _combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return left[0] * right[0], left[1] * right[0] + right[1]


def _associative(a: Tensor, x: Tensor) -> Tensor:
    from torch._higher_order_ops.associative_scan import associative_scan

    return associative_scan(_combine, (a, x), dim=1, combine_mode="generic")[1]


def compiled_associative_scan() -> Callable[..., Tensor]:
    """PyTorch's associative_scan under torch.compile, everything around it in the same graph."""
    torch._dynamo.reset()
    return torch.compile(lambda *arguments: scan_by(_associative, arguments))
