"""The layers of VMamba around its token mixer: norms, MLP, stems, downsampling.

CL: channel-last tensors [B, H, W, C]; CF: channel-first tensors [B, C, H, W]. Linear weights are 2-D in both, so a CF
and a CL model share checkpoints. CF tensors are kept in channels_last memory, where moving between the two is a view.
Layers that look at the tensors they are given are leaves for torch.fx (`register_notrace_module`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from vmamba_kernels.backends import exporting, transformed
from vmamba_kernels.mlp import fuses, mlp

from ..errors import UserError, closest
from .convolution import Conv2d

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU, "sigmoid": nn.Sigmoid}
DOWNSAMPLES = ("v1", "v2", "v3", "none")
PATCH_EMBEDS = ("v1", "v2")


def find(argument: str, name: Any, known: Any) -> Any:
    """`known[name]`, or `name` itself of a plain list, in any case; UserError with the known names otherwise."""
    key = str(name).lower()
    if key not in known:
        names = ", ".join(str(word) or "''" for word in known)
        raise UserError(f"{argument}: {name!r} is not one of {names}.{closest(key, known)}")
    return known[key] if isinstance(known, dict) else key


class Permute(nn.Module):
    """The input with its axes permuted."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.axes))


def to_channel_first() -> nn.Module:
    """CL to CF, as a view."""
    return Permute(0, 3, 1, 2)


def to_channel_last() -> nn.Module:
    """CF to CL, as a view."""
    return Permute(0, 2, 3, 1)


def channels_last(images: Tensor) -> Tensor:
    """CF images in channels_last memory; as they are under a transform of torch.func, which knows no such layout."""
    return images if transformed() else images.contiguous(memory_format=torch.channels_last)


@register_notrace_module
class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis that takes float32 input with half weights, computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype != x.dtype and self.weight.dtype in (torch.float16, torch.bfloat16):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
        return super().forward(x)


class LayerNorm2d(LayerNorm):
    """LayerNorm over the channels of a CF tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS: dict[str, type[nn.Module]] = {"ln": LayerNorm, "ln2d": LayerNorm2d, "bn": nn.BatchNorm2d}


def _changed(module: nn.Module) -> bool:
    """Whether calling a layer does more, or something else, than its class says: hooks, or a forward of its own."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks) or "forward" in module.__dict__


def plainly_used(x: Tensor, layers: Sequence[nn.Module], weights: Sequence[Tensor]) -> bool:
    """Whether an operator of x's device may stand for layers of these weights: unchanged, of x's type, not exported,
    and not under a transform of torch.func or forward-mode derivatives.

    Fake tensors take it where gradients are wanted, so that what it remembers is counted; without them its scratch,
    which no count sees, is most of its memory.
    """
    return (
        (type(x) is Tensor or (type(x) is FakeTensor and torch.is_grad_enabled()))
        and all(type(weight) in (nn.Parameter, Tensor, FakeTensor) and x.dtype is weight.dtype for weight in weights)
        and not any(_changed(layer) for layer in layers)
        and not nn.modules.module._has_any_global_hook()
        and not exporting()
        and not transformed()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled(x.device.type)
    )


@register_notrace_module
class Mlp(nn.Module):
    """fc1, activation, fc2; gated: fc2(x * act(z)) with x, z the halves of fc1. Works over the last axis, or CF."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float = 0.0,
        channels_first: bool = False,
        gated: bool = False,
        **dd: Any,
    ) -> None:
        super().__init__()
        hidden = hidden_features or in_features
        self.channel_first = channels_first
        self.gated = gated
        self.fc1 = nn.Linear(in_features, 2 * hidden if gated else hidden, **dd)
        self.act = act_layer()
        self.drop = nn.Dropout(drop) if drop > 0 else nn.Identity()
        self.fc2 = nn.Linear(hidden, out_features or in_features, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if self.channel_first:
            x = x.permute(0, 2, 3, 1)
        if self._fuses(x):
            x = mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        elif self.gated:
            x, z = self.fc1(x).chunk(2, dim=-1)
            x = self.drop(self.fc2(x * self.act(z)))
        else:
            x = self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        return x.permute(0, 3, 1, 2) if self.channel_first else x

    def _fuses(self, x: Tensor) -> bool:
        """Whether one operator may stand for all of it."""
        fc1, act, drop, fc2 = self.fc1, self.act, self.drop, self.fc2
        return (
            (type(fc1), type(act), type(drop), type(fc2)) == (nn.Linear, nn.GELU, nn.Identity, nn.Linear)
            and act.approximate == "none"
            and not self.gated
            and fc1.bias is not None
            and fc2.bias is not None
            and fuses(x.dtype, x.device.type)
            and plainly_used(x, (fc1, act, drop, fc2), (fc1.weight, fc2.weight))
        )


def patch_embed(
    version: str,
    in_chans: int,
    embed_dim: int,
    patch_size: int,
    norm: Callable[..., nn.Module] | None,
    channel_first: bool,
    **dd: Any,
) -> nn.Sequential:
    """The stem, [B, in_chans, H, W] to the model's layout. v1: one convolution; v2: two, of stride patch_size // 2."""
    last = nn.Identity if channel_first else to_channel_last
    first = nn.Identity if channel_first else to_channel_first

    def normed(channels: int) -> nn.Module:
        return norm(channels, **dd) if norm else nn.Identity()

    if find("patchembed_version", version, PATCH_EMBEDS) == "v1":
        convolution = Conv2d(in_chans, embed_dim, patch_size, patch_size, **dd)
        return nn.Sequential(convolution, last(), normed(embed_dim))
    stride = patch_size // 2
    if stride < 1 or embed_dim % 2:
        raise UserError(
            f"patch_size, dims: patchembed_version 'v2' needs patch_size >= 2 and an even first width, "
            f"got {patch_size} and {embed_dim}; use 'v1' otherwise"
        )
    half = embed_dim // 2
    return nn.Sequential(
        Conv2d(in_chans, half, stride + 1, stride, 1, **dd),
        last(),
        normed(half),
        first(),
        nn.GELU(),
        Conv2d(half, embed_dim, stride + 1, stride, 1, **dd),
        last(),
        normed(embed_dim),
    )


@register_notrace_module
class PatchMerging(nn.Module):
    """Downsampling v1: each 2x2 cell (zero-padded at odd sizes) becomes one position of 4C, normed, projected to 2C."""

    def __init__(
        self,
        dim: int,
        out_dim: int | None = None,
        norm: Callable[..., nn.Module] = LayerNorm,
        channel_first: bool = False,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.channel_first = channel_first
        self.reduction = nn.Linear(4 * dim, out_dim or 2 * dim, bias=False, **dd)
        self.norm = norm(4 * dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if self.channel_first:
            x = x.permute(0, 2, 3, 1)
        H, W = x.shape[1:3]
        # not W % 2 and H % 2, of which torch.export cannot tell how small a half can be
        x = F.pad(x, (0, 0, 0, 2 * ((W + 1) // 2) - W, 0, 2 * ((H + 1) // 2) - H))
        x = x.unfold(1, 2, 2).unfold(2, 2, 2)  # [B, h, w, C, row, column]
        x = x.permute(0, 1, 2, 5, 4, 3).flatten(3)  # [B, h, w, 4C]: (0,0), (1,0), (0,1), (1,1) of (row, column)
        if self.channel_first:
            x = self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return self.reduction(x).permute(0, 3, 1, 2)
        return self.reduction(self.norm(x))


def downsample(
    version: str, dim: int, out_dim: int, norm: Callable[..., nn.Module], channel_first: bool, **dd: Any
) -> nn.Module:
    """The layer between two stages, of stride 2: v1 patch merging, v2 convolution 2x2, v3 convolution 3x3, padded."""
    version = find("downsample_version", version, DOWNSAMPLES)
    if version == "none":
        if dim != out_dim:
            raise UserError(f"dims: downsample_version 'none' needs equal dims, got {dim} and {out_dim}")
        return nn.Identity()
    if version == "v1":
        return PatchMerging(dim, out_dim, norm, channel_first, **dd)
    kernel, padding = (2, 0) if version == "v2" else (3, 1)
    return nn.Sequential(
        nn.Identity() if channel_first else to_channel_first(),
        Conv2d(dim, out_dim, kernel, 2, padding, **dd),
        nn.Identity() if channel_first else to_channel_last(),
        norm(out_dim, **dd),
    )
