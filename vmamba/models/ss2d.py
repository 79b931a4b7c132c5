"""SS2D, the token mixer of VMamba: a selective scan over an image along K scan orders.

B batch, D model width, I = int(ssm_ratio * D) inner width, K sequences of the scan order, N = d_state, R = dt_rank,
L = H*W.
Source: Liu et al., "VMamba: Visual State Space Model", 2024, section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vmamba_kernels import cross_merge, cross_scan, scan_order, selective_scan
from vmamba_kernels.depthwise_silu import depthwise_silu
from vmamba_kernels.depthwise_silu import fuses as fuses_convolution
from vmamba_kernels.ss2d import fuses, ss2d

from ..errors import UserError
from .argument_checks import int_or_auto
from .forward_type import ForwardType, parse_forward_type
from .layers import LayerNorm, find, plainly_used, to_channel_first, to_channel_last

INITIALISATIONS = ("v0", "v1", "v2")


def _wide(x: Tensor) -> Tensor:
    """`x` in float32 if it is of a half type."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class SoftmaxOverPositions(nn.Module):
    """[B, H, W, I] with a softmax over the H*W positions of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2).softmax(1).view(x.shape)


@register_notrace_module
class SS2D(nn.Module):
    """Maps [B, H, W, D], or [B, D, H, W] if `channel_first`, to the same shape.

    Args:
        d_model: D. d_state: N. ssm_ratio: I = int(ssm_ratio * D). dt_rank: R, or "auto" for ceil(D / 16).
        act_layer: activation after the convolution, and of the gate.
        d_conv: kernel of the depthwise convolution, padded by (d_conv - 1) // 2; below 2 there is none.
        conv_bias: whether it has a bias.
        dropout: after out_proj. bias: of in_proj and out_proj.
        dt_min, dt_max, dt_init, dt_scale, dt_init_floor: initialisation "v0" of the step sizes.
        initialize: "v0" (S4D-real), "v1" (normal) or "v2" (zero A_logs, uniform steps).
        forward_type: a published string or a ForwardType.

    The parameters have the published names and shapes. A parameter `x_proj_bias` [K, R + 2N] may be set from outside,
    and is added.
    """

    ssd = False
    initialisations: tuple[str, ...] = INITIALISATIONS

    def __init__(
        self,
        d_model: int = 96,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dt_rank: int | str = "auto",
        act_layer: Callable[[], nn.Module] = nn.SiLU,
        d_conv: int = 3,
        conv_bias: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        initialize: str = "v0",
        forward_type: str | ForwardType = "v05_noz",
        channel_first: bool = False,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.options = parse_forward_type(forward_type)
        if self.options.ssd != self.ssd:
            raise UserError(
                f"forward_type: {forward_type!r} is not for {type(self).__name__}; SS2D takes the versions 'v...', "
                "SS2DMamba2 takes 'm0'"
            )
        self.initialize = find("ssm_init", initialize, self.initialisations)
        self.dt_init = (dt_min, dt_max, find("dt_init", dt_init, ("random", "constant")), dt_scale, dt_init_floor)
        self.channel_first = channel_first
        self.d_inner = inner = int(ssm_ratio * d_model)
        self.d_state = d_state
        self.dt_rank = rank = int_or_auto("dt_rank", dt_rank, auto=math.ceil(d_model / 16))
        for name, value in (("ssm_ratio * d_model", inner), ("d_state", d_state)):
            if value < 1:
                raise UserError(f"{name}: must be at least 1, got {value}")
        self.k_group = groups = scan_order(self.options.scan_order, 1, 1).shape[0]

        self.out_norm = self._make_out_norm(**dd)
        self.out_act = nn.GELU() if self.options.out_act else nn.Identity()
        self.x_proj_weight = nn.Parameter(torch.empty(groups, rank + 2 * d_state, inner, **dd))
        self._make_scan_parameters(**dd)
        for parameter in (self.A_logs, self.Ds):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.in_proj = nn.Linear(d_model, 2 * inner if self.options.gate else inner, bias=bias, **dd)
        self.act = act_layer()
        self.conv2d = self._make_convolution(d_conv, conv_bias, **dd) if d_conv > 1 else None
        self.out_proj = nn.Linear(inner, d_model, bias=bias, **dd)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.reset_parameters()

    def _make_scan_parameters(self, **dd: Any) -> None:
        """Parameters of the recurrence, to be drawn by `reset_parameters`."""
        groups, inner = self.k_group, self.d_inner
        self.A_logs = nn.Parameter(torch.empty(groups * inner, self.d_state, **dd))
        self.Ds = nn.Parameter(torch.empty(groups * inner, **dd))
        self.dt_projs_weight = nn.Parameter(torch.empty(groups, inner, self.dt_rank, **dd))
        self.dt_projs_bias = nn.Parameter(torch.empty(groups, inner, **dd))

    def _make_convolution(self, kernel: int, bias: bool, **dd: Any) -> nn.Module:
        """The depthwise convolution, on [B, I, H, W]."""
        inner = self.d_inner
        return nn.Conv2d(inner, inner, kernel, padding=(kernel - 1) // 2, groups=inner, bias=bias, **dd)

    def _convolved(self, x: Tensor) -> Tensor:
        """[B, H, W, I] after the depthwise convolution, if there is one."""
        return x if self.conv2d is None else self.conv2d(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _activated(self, x: Tensor) -> Tensor:
        """[B, H, W, I] after the convolution and the activation."""
        if self._fuses_convolution(x):
            return depthwise_silu(x, self.conv2d.weight, self.conv2d.bias)  # type: ignore[union-attr, arg-type]
        return self.act(self._convolved(x))

    def _fuses_convolution(self, x: Tensor) -> bool:
        """Whether one operator may stand for the convolution and the activation."""
        conv, act = self.conv2d, self.act
        if type(conv) is not nn.Conv2d or type(act) is not nn.SiLU:
            return False
        kernel = conv.kernel_size[0]
        options = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
        return (
            options == ((kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1), conv.in_channels, "zeros")
            and conv.out_channels == conv.in_channels
            and fuses_convolution(x.dtype, kernel, x.device.type)
            and plainly_used(x, (conv, act), [p for p in (conv.weight, conv.bias) if p is not None])
        )

    def _make_out_norm(self, **dd: Any) -> nn.Module:
        """The norm after the merge, on [B, H, W, I]; its keys are the published ones."""
        kind, inner = self.options.out_norm, self.d_inner
        if kind == "ln":
            return LayerNorm(inner, **dd)
        if kind == "softmax":
            return SoftmaxOverPositions()
        if kind == "sigmoid":
            return nn.Sigmoid()
        if kind == "none":
            return nn.Identity()
        depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False, **dd)
        convolution = [to_channel_first(), depthwise, to_channel_last()]
        return nn.Sequential(*([LayerNorm(inner, **dd)] if kind == "cnorm" else []), *convolution)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw x_proj, the step sizes, A and D anew; the linear and convolution layers have their own."""
        bound = self.d_inner**-0.5
        self.x_proj_weight.uniform_(-bound, bound)
        self.Ds.fill_(1.0)
        if self.initialize == "v0":
            states = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=self.A_logs.device)
            self.A_logs.copy_(states.log().expand_as(self.A_logs))
            self._reset_step_sizes()
            return
        if self.initialize == "v1":
            self.A_logs.normal_()
            draw: Callable[[Tensor], Tensor] = Tensor.normal_
        else:
            self.A_logs.zero_()
            draw = Tensor.uniform_
        for parameter in (self.dt_projs_weight, self.dt_projs_bias):
            draw(parameter).mul_(0.1)

    def _reset_step_sizes(self) -> None:
        """dt_projs so that softplus of the bias alone is log-uniform in [dt_min, dt_max] (Gu et al., S4D)."""
        dt_min, dt_max, kind, scale, floor = self.dt_init
        bound = scale * self.dt_rank**-0.5
        if kind == "constant":
            self.dt_projs_weight.fill_(bound)
        else:
            self.dt_projs_weight.uniform_(-bound, bound)
        bias = self.dt_projs_bias
        low, high = math.log(dt_min), math.log(dt_max)
        dt = torch.rand(bias.shape, device=bias.device).mul_(high - low).add_(low).exp_().clamp_(min=floor)
        bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, x: Tensor) -> Tensor:
        if self.channel_first:
            x = x.permute(0, 2, 3, 1)
        x = self.in_proj(x)  # [B, H, W, I or 2I]
        z = None
        if self.options.gate:
            x, z = x.chunk(2, dim=-1)
            z = self.act(z) if self.options.gate_act else z
        x = self._activated(x)
        y = self._cascade(x) if self.options.scan_order == "cascade2d" else self._scan(x, self.options.scan_order)
        y = self._normed(y, x.dtype)
        y = y if z is None else y * z
        y = self.dropout(self.out_proj(y))  # [B, H, W, D]
        return y.permute(0, 3, 1, 2) if self.channel_first else y

    def _normed(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """out_norm in the scan's precision where it has no convolution, then out_act in the type of the activations."""
        if self.options.out_norm in ("dwconv3", "cnorm"):
            y = y.to(dtype)
        return self.out_act(self.out_norm(y).to(dtype))

    def _group_parameters(self, groups: slice | None) -> tuple[Any, ...]:
        """x_proj_weight, its bias, dt_projs_weight, A_logs, Ds, dt_projs_bias of some groups, the last three flat."""
        bias = getattr(self, "x_proj_bias", None)
        grouped = (self.x_proj_weight, bias, self.dt_projs_weight)
        if groups is None:
            return *grouped, self.A_logs, self.Ds, self.dt_projs_bias.flatten()
        rows = slice(groups.start * self.d_inner, groups.stop * self.d_inner)
        sliced = (None if p is None else p[groups] for p in grouped)
        return *sliced, self.A_logs[rows], self.Ds[rows], self.dt_projs_bias[groups].flatten()

    def _scan(self, x: Tensor, order: str, groups: slice | None = None, merged: bool = True) -> Tensor:
        """[B, H, W, I]: the scan of x [B, H, W, I] along an order, with the parameters of `groups` (None: all).

        All directions are projected in image order by one product. If not `merged`, the sequences are summed as they
        were scanned, which only the plain operators do.
        """
        B, H, W, inner = x.shape
        rank, states = self.dt_rank, self.d_state
        weight, weight_bias, dt_weight, a_logs, skip, dt_bias = self._group_parameters(groups)
        K = weight.shape[0]
        x_dbl = F.linear(x, weight.flatten(0, 1))  # [B, H, W, K * (R + 2N)]
        if weight_bias is not None:
            x_dbl = x_dbl + weight_bias.flatten().to(x_dbl.dtype)
        A, skip, dt_bias = -torch.exp(_wide(a_logs)), _wide(skip), _wide(dt_bias)
        backend, wide = self.options.backend, self.options.fp32_scan
        if merged and self.options.fused and fuses(x.dtype, x.device.type, backend):
            if wide:
                x, x_dbl = _wide(x), _wide(x_dbl)
            return ss2d(x, x_dbl, dt_weight, A, skip, dt_bias, order=order, backend=backend)

        layout: dict[str, Any] = {"in_channel_first": False, "out_channel_first": False}
        x_dbl = cross_scan(x_dbl.unflatten(-1, (K, rank + 2 * states)), order, one_by_one=True, **layout)
        dt, b, c = x_dbl.split([rank, states, states], dim=-1)  # [B, L, K, R], [B, L, K, N] twice
        delta = torch.einsum("blkr,kdr->blkd", dt, dt_weight.to(dt.dtype))  # [B, L, K, I]
        u = cross_scan(x, order, **layout)  # [B, L, K, I]
        b, c = b.permute(0, 2, 3, 1), c.permute(0, 2, 3, 1)  # [B, K, N, L]
        if wide:
            u, delta, b, c = _wide(u), _wide(delta), _wide(b), _wide(c)
        u, delta = u.flatten(2).transpose(1, 2), delta.flatten(2).transpose(1, 2)  # [B, K*I, L], stored channel-last
        y = selective_scan(u, delta, A, b, c, skip, dt_bias, backend=backend)
        assert isinstance(y, Tensor)
        y = y.transpose(1, 2).reshape(B, H, W, K, inner)
        if not merged:
            return y.sum(3)
        return cross_merge(y, order, **layout).view(B, H, W, inner)

    def _cascade(self, x: Tensor) -> Tensor:
        """[B, H, W, I]: every row scanned both ways by groups 0 and 1, then every column by groups 2 and 3.

        The published models sum the reversed sequences without turning them back; `flip_back` does turn them.
        """
        inner, dtype = x.shape[3], x.dtype
        x = self._scan_lines(F.layer_norm(x, (inner,)), slice(0, 2)).to(dtype)
        return self._scan_lines(F.layer_norm(x, (inner,)).transpose(1, 2), slice(2, 4)).transpose(1, 2)

    def _scan_lines(self, x: Tensor, groups: slice) -> Tensor:
        """[B, M, L, I]: each of the M lines of x [B, M, L, I] scanned both ways by two groups."""
        lines = x.flatten(0, 1).unsqueeze(1)
        y = self._scan(lines, "rows_both", groups, merged=self.options.flip_back)
        return y.squeeze(1).unflatten(0, x.shape[:2])
