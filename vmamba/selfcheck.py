"""Does the backend that an operator uses here compute what the reference computes? A second's work, for the doctor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vmamba_kernels import (
    causal_conv1d,
    conv2d,
    cross_merge,
    cross_scan,
    depthwise_silu,
    mamba_inner,
    mlp,
    pooled_scan,
    rms_norm,
    scan_order,
    selective_scan,
    ssd,
)
from vmamba_kernels.ss2d import ss2d

TOLERANCE = 1e-5
Case = Callable[[dict[str, Tensor], str | None], Tensor]


def _scan_tensors() -> dict[str, Tensor]:
    """u, delta, A, B, C, D, delta_bias of an odd size: 2 images, 2 groups of 5 channels, 37 steps, 3 states."""
    batch, groups, width, length, states = 2, 2, 5, 37, 3
    channels = groups * width
    return {
        "u": torch.randn(batch, channels, length),
        "delta": torch.randn(batch, channels, length) - 1,
        "A": -torch.rand(channels, states) - 0.1,
        "B": torch.randn(batch, groups, states, length),
        "C": torch.randn(batch, groups, states, length),
        "D": torch.randn(channels),
        "delta_bias": torch.randn(channels),
    }


def _ss2d_tensors() -> dict[str, Tensor]:
    """x, x_dbl, dt_weight, A, D, delta_bias of an odd size: 2 images of 5 x 7, 6 channels, rank 2, 3 states."""
    batch, height, width, channels, directions, rank, states = 2, 5, 7, 6, 4, 2, 3
    return {
        "x": torch.randn(batch, height, width, channels),
        "x_dbl": torch.randn(batch, height, width, directions * (rank + 2 * states)),
        "dt_weight": torch.randn(directions, channels, rank),
        "A": -torch.rand(directions * channels, states) - 0.1,
        "D": torch.randn(directions * channels),
        "delta_bias": torch.randn(directions * channels) - 1,
    }


def _ssd_tensors() -> dict[str, Tensor]:
    """x, dt, A, B, C, D, dt_bias of an odd size: 2 sequences of 70 steps, 4 heads of 5, 2 groups, 3 states."""
    batch, length, heads, width, groups, states = 2, 70, 4, 5, 2, 3
    return {
        "x": torch.randn(batch, length, heads, width),
        "dt": torch.randn(batch, length, heads) - 1,
        "A": -torch.rand(heads) - 0.1,
        "B": torch.randn(batch, length, groups, states),
        "C": torch.randn(batch, length, groups, states),
        "D": torch.randn(heads, width),
        "dt_bias": torch.randn(heads),
    }


def _pooled_tensors() -> dict[str, Tensor]:
    """Those of the scan at 5 steps, and u_full: 5 x 7 tokens whose rows are pooled."""
    tensors = {name: t[..., :5] if t.dim() > 2 else t for name, t in _scan_tensors().items()}
    return {"u_full": torch.randn(2, 10, 35), **tensors}


def _cross_scan_by_index(x: Tensor) -> Tensor:
    positions = scan_order("cross2d", *x.shape[-2:]).to(x.device)
    return torch.stack([x.flatten(2)[..., row] for row in positions], 1)


def _round_trip(tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    """cross_scan and cross_merge; its reference reads by index, and the merge of a scan is K times the image."""
    x = tensors["x"]
    if backend == "reference":
        return torch.cat([_cross_scan_by_index(x).flatten(), 4 * x.flatten()])
    sequences = cross_scan(x)
    merged = cross_merge(sequences.unflatten(-1, x.shape[-2:]))
    return torch.cat([sequences.flatten(), merged.flatten()])


def _scan(tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    u, delta, A, B, C, D, delta_bias = tensors.values()
    out = selective_scan(u, delta, A, B, C, D, delta_bias, backend=backend)
    assert isinstance(out, Tensor)
    return out


def _conv_tensors() -> dict[str, Tensor]:
    """x, weight, bias of an odd size: 2 sequences of 37 steps and 5 channels, channel-last, 2 groups of 4 taps."""
    x = torch.randn(2, 37, 5).transpose(1, 2)
    return {"x": x, "weight": torch.randn(2, 5, 4), "bias": torch.randn(2, 5)}


def _conv(tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    x, weight, bias = tensors.values()
    return causal_conv1d(x, weight, bias, "silu", reverse=(False, True), backend=backend)


def _depthwise_tensors() -> dict[str, Tensor]:
    """x, weight, bias of an odd size: 2 images of 5 x 7, 37 channels."""
    return {"x": torch.randn(2, 5, 7, 37), "weight": torch.randn(37, 1, 3, 3), "bias": torch.randn(37)}


def _depthwise(tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    return depthwise_silu(*tensors.values(), backend=backend)


def _dense_tensors() -> dict[str, Tensor]:
    """x, weight, bias of an odd size: 2 images of 5 x 7, 18 channels to 3, a kernel of 3 x 2."""
    return {"x": torch.randn(2, 5, 7, 18), "weight": torch.randn(3, 18, 3, 2), "bias": torch.randn(3)}


def _dense(tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    x, weight, bias = tensors.values()
    return conv2d(x, weight, bias, stride=2, padding=1, backend=backend)


def _ss2d(tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    return ss2d(*tensors.values(), backend=backend)


def _inner_tensors() -> dict[str, Tensor]:
    """Of an odd size but for the channels: 2 sequences of 37 tokens, 2 directions of 48 channels, rank 3, 5 states."""
    batch, length, groups, channels, rank, states = 2, 37, 2, 48, 3, 5
    return {
        "xz": torch.randn(batch, length, 2 * channels),
        "conv_weight": torch.randn(groups, channels, 4) / 2,
        "conv_bias": torch.randn(groups, channels),
        "x_weight": torch.randn(groups, rank + 2 * states, channels) / channels**0.5,
        "dt_weight": torch.randn(groups, channels, rank),
        "A": -torch.rand(groups * channels, states) - 0.1,
        "D": torch.randn(groups * channels),
        "delta_bias": torch.randn(groups * channels) - 1,
    }


def _inner(tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    return mamba_inner(*tensors.values(), reverse=(False, True), scale=0.5, backend=backend)


def _mlp_tensors() -> dict[str, Tensor]:
    shapes = {"x": (7, 13), "weight1": (9, 13), "bias1": (9,), "weight2": (5, 9), "bias2": (5,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def _mlp(tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    return mlp(*tensors.values(), backend=backend)


def _rms_norm(tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    x, weight = tensors.values()
    return rms_norm(x, weight, backend=backend)


def _ssd(tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    out = ssd(*tensors.values(), backend=backend)
    assert isinstance(out, Tensor)
    return out


def _pooled(tensors: dict[str, Tensor], backend: str | None) -> Tensor:
    """Both directions and their mean, the rows of an image pooled."""
    u_full, u_pooled, delta, A, B, C, D, delta_bias = tensors.values()
    inputs = (u_full, u_pooled, delta, A, B, C, D, delta_bias)
    return pooled_scan(*inputs, grid=(5, 7), reverse=(False, True), average=True, backend=backend)


CASES: dict[str, tuple[Callable[[], dict[str, Tensor]], Case]] = {
    "causal_conv1d": (_conv_tensors, _conv),
    "conv2d": (_dense_tensors, _dense),
    "depthwise_silu": (_depthwise_tensors, _depthwise),
    "selective_scan": (_scan_tensors, _scan),
    "cross_scan": (lambda: {"x": torch.randn(2, 3, 5, 7)}, _round_trip),
    "ss2d": (_ss2d_tensors, _ss2d),
    "mamba_inner": (_inner_tensors, _inner),
    "mlp": (_mlp_tensors, _mlp),
    "rms_norm": (lambda: {"x": torch.randn(7, 37), "weight": torch.randn(37)}, _rms_norm),
    "ssd": (_ssd_tensors, _ssd),
    "pooled_scan": (_pooled_tensors, _pooled),
}


def largest_error(operator: str, device: str) -> float:
    """Return the largest relative error, over the output and every gradient, of an operator's backend on a device.

    The yardstick is the reference in float64 on the CPU, on the same seeded tensors. KeyError for an operator that has
    no case here.
    """
    make, call = CASES[operator]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors = make()
    exact = _values(call, {name: t.double() for name, t in tensors.items()}, "reference")
    ours = _values(call, {name: t.to(device) for name, t in tensors.items()}, None)
    return max(((a.cpu().double() - b).norm() / b.norm()).item() for a, b in zip(ours, exact))


def _values(call: Case, tensors: dict[str, Tensor], backend: str | None) -> list[Tensor]:
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    out = call(leaves, backend)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), list(leaves.values()))]
