"""Other ways to compute the selective scan, for the benchmarks: each maps the operator's arguments to y [B, KD, L].

`scan_by` is the step size and the readout in plain PyTorch around any solver of the recurrence h_l = exp(g_l) h_{l-1} +
x_l. A peer that is not installed raises ImportError when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., Tensor]
Recurrence = Callable[[Tensor, Tensor], Tensor]


def scan_by(recurrence: Recurrence, arguments: tuple[Tensor, ...]) -> Tensor:
    """y of u, delta, A, B, C, D, delta_bias with softplus, in float32; `recurrence` maps g, x [B, L, KD, N] to h."""
    u, delta, A, B, C, D, delta_bias = arguments
    u, delta, B, C = u.float(), delta.float(), B.float(), C.float()
    groups, d_state = B.shape[1:3]
    batch, channels, length = u.shape
    grouped = (batch, length, groups, channels // groups, d_state)
    u = u.transpose(1, 2)
    dt = F.softplus(delta.transpose(1, 2) + delta_bias)
    drive = (dt * u).reshape(*grouped[:-1], 1) * B.permute(0, 3, 1, 2).unsqueeze(3)
    h = recurrence(dt.unsqueeze(-1) * A, drive.reshape(batch, length, channels, d_state))
    y = (h.reshape(grouped) * C.permute(0, 3, 1, 2).unsqueeze(3)).sum(-1).view(batch, length, channels)
    return (y + D * u).transpose(1, 2)


def sequential_loop(*arguments: Tensor) -> Tensor:
    """The published reference: exp(dt A) and dt B u as whole [B, KD, L, N] tensors, then one step of Python a time."""
    u, delta, A, B, C, D, delta_bias = arguments
    per_group = u.shape[1] // B.shape[1]
    u, dt = u.float(), F.softplus(delta.float() + delta_bias[:, None])
    B, C = B.float().repeat_interleave(per_group, 1), C.float().repeat_interleave(per_group, 1)
    a = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    x = torch.einsum("bdl,bdnl,bdl->bdln", dt, B, u)
    h = A.new_zeros(u.shape[0], *A.shape)
    steps = []
    for step in range(u.shape[2]):
        h = a[:, :, step] * h + x[:, :, step]
        steps.append(torch.einsum("bdn,bdn->bd", h, C[..., step]))
    return torch.stack(steps, 2) + u * D[:, None]


def mambapy() -> Function:
    """The parallel scan of PyPI's mambapy (Blelloch, in place, forward and backward written by hand)."""
    from mambapy.pscan import pscan as parallel_scan

    return lambda *arguments: scan_by(lambda g, x: parallel_scan(torch.exp(g), x), arguments)


def mamba_ssm() -> Function:
    """The CUDA scan of PyPI's mamba-ssm, which is there if it was built with MAMBA_KEEP_CUDA_BUILD=TRUE."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
        return selective_scan_fn(u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=True)

    return scan


def flash_linear_attention() -> Function:
    """The elementwise recurrence (HGRN) of flash-linear-attention, the states of a channel side by side as channels."""
    from fla.ops.hgrn import chunk_hgrn

    def recurrence(g: Tensor, x: Tensor) -> Tensor:
        return chunk_hgrn(x.flatten(2).contiguous(), g.flatten(2).contiguous())[0].view(x.shape)

    return lambda *arguments: scan_by(recurrence, arguments)


def _combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return left[0] * right[0], left[1] * right[0] + right[1]


def compiled_associative_scan(mode: str) -> Function:
    """PyTorch's associative_scan under torch.compile, everything around it in the same graph.

    `mode` "generic" runs everywhere; "pointwise" is one Triton kernel, on a GPU, where the compiler takes it.
    """
    from torch._higher_order_ops.associative_scan import associative_scan

    def recurrence(g: Tensor, x: Tensor) -> Tensor:
        return associative_scan(_combine, (torch.exp(g), x), dim=1, combine_mode=mode)[1]

    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False  # a backward that is timed alone runs many times
    return torch.compile(lambda *arguments: scan_by(recurrence, arguments))
