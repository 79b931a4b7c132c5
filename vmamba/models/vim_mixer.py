"""The token mixer of Vim: a selective scan over the tokens from the first to the last, and from the last to the first.

B batch, L tokens, D model width, E = expand * D inner width, G directions, N = d_state, R = dt_rank, W = d_conv.
Source: Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model", 2024,
section 3.3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba_kernels import causal_conv1d, selective_scan
from vmamba_kernels.causal_conv1d.arguments import MAX_WIDTH
from vmamba_kernels.mamba_inner import fuses, mamba_inner
from vmamba_kernels.selective_scan.arguments import MAX_STATES

from .argument_checks import check_int, check_positive, int_or_auto
from .layers import LayerNorm, find, plainly_used

BIMAMBA_TYPES = ("v2", "v1", "none")


def wide(x: Tensor) -> Tensor:
    """`x` in float32 if it is of a half type."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class VimMixer(nn.Module):
    """Maps tokens [B, L, D] to the same shape.

    Args:
        d_model: D. d_state: N. expand: E = int(expand * D). dt_rank: R, or "auto" for ceil(D / 16).
        d_conv: W, at most 8. conv_bias: whether the convolutions have a bias. bias: of in_proj and out_proj.
        dt_min, dt_max, dt_init ("random", "constant"), dt_scale, dt_init_floor: initialisation of the step sizes.
        use_fast_path: kept for published configurations; every path gives the same numbers here.
        bimamba_type: "v2", each direction with a convolution, projections, A and D of its own; "v1", both directions
            from one convolution and one projection, each with its A; "none", one direction.
        if_divide_out: halve the sum of two directions of "v2"; those of "v1" are never halved.
        init_layer_scale: initial value of a learned factor of each channel of the output; None: no factor.
        norm_after_scan: a LayerNorm over E before the gate.
        backend: of the operators, None by device.
    """

    conv1d: nn.Conv1d
    dt_proj: nn.Linear

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        *,
        bimamba_type: str = "v2",
        if_divide_out: bool = True,
        init_layer_scale: float | None = None,
        norm_after_scan: bool = False,
        backend: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.bimamba_type = find("bimamba_type", bimamba_type, BIMAMBA_TYPES)
        check_positive("expand", expand)
        self.d_inner = inner = int(expand * d_model)
        self.d_state = d_state
        self.dt_rank = rank = int_or_auto("dt_rank", dt_rank, auto=math.ceil(d_model / 16))
        for name, count, most in (
            ("expand * d_model", inner, None),
            ("d_state", d_state, MAX_STATES),
            ("d_conv", d_conv, MAX_WIDTH),
        ):
            check_int(name, count, most=most)
        for name, value in (("dt_min", dt_min), ("dt_max", dt_max), ("dt_scale", dt_scale)):
            check_positive(name, value)
        self.dt_init = (dt_min, dt_max, find("dt_init", dt_init, ("random", "constant")), dt_scale, dt_init_floor)
        self.divide = if_divide_out and self.bimamba_type == "v2"
        self.use_fast_path = use_fast_path
        self.init_layer_scale = init_layer_scale
        self.backend = backend
        # The suffixes of the layers that the directions have: "conv1d", and "conv1d_b" of the backward one.
        self.own_layers = ("", "_b") if self.bimamba_type == "v2" else ("",)

        self.gamma = None if init_layer_scale is None else nn.Parameter(torch.empty(d_model, **dd))
        self.A_log = nn.Parameter(torch.empty(inner, d_state, **dd))
        self.D = nn.Parameter(torch.empty(inner, **dd))
        if self.bimamba_type != "none":
            self.A_b_log = nn.Parameter(torch.empty(inner, d_state, **dd))
        if self.bimamba_type == "v2":
            self.D_b = nn.Parameter(torch.empty(inner, **dd))
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=bias, **dd)
        self.layernorm = LayerNorm(inner, **dd) if norm_after_scan else nn.Identity()
        for suffix in self.own_layers:
            self.add_module(f"conv1d{suffix}", nn.Conv1d(inner, inner, d_conv, groups=inner, bias=conv_bias, **dd))
            self.add_module(f"x_proj{suffix}", nn.Linear(inner, rank + 2 * d_state, bias=False, **dd))
            self.add_module(f"dt_proj{suffix}", nn.Linear(rank, inner, **dd))
        self.out_proj = nn.Linear(inner, d_model, bias=bias, **dd)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, residual_scale: float = 1.0) -> None:
        """Draw A, D, the step sizes and out_proj anew, the last divided by `residual_scale`; other biases become 0.

        As published, the backward direction's dt_proj keeps the default of a linear layer, with bias 0.
        """
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("_log"):
                states = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=parameter.device)
                parameter.copy_(states.log().expand_as(parameter))
            elif name == "gamma" and self.init_layer_scale is not None:
                parameter.fill_(self.init_layer_scale)
            else:
                parameter.fill_(1.0)
        for layer in self.children():
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self._reset_step_sizes(*self.dt_init)
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        self.out_proj.weight.div_(residual_scale)

    def _reset_step_sizes(self, dt_min: float, dt_max: float, kind: str, scale: float, floor: float) -> None:
        """dt_proj so that softplus of its bias alone is log-uniform in [dt_min, dt_max] (Gu et al., S4D)."""
        projection = self.dt_proj
        bound = scale * self.dt_rank**-0.5
        if kind == "constant":
            nn.init.constant_(projection.weight, bound)
        else:
            nn.init.uniform_(projection.weight, -bound, bound)
        low, high = math.log(dt_min), math.log(dt_max)
        dt = torch.rand(self.d_inner, device=projection.bias.device).mul_(high - low).add_(low).exp_().clamp_(min=floor)
        projection.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, x: Tensor, grid: Any = None) -> Tensor:
        """[B, L, D]; `grid`, the rows and columns of the tokens, is for mixers that pool them."""
        xz = self.in_proj(x)  # [B, L, 2E]
        y = self.out_proj(self._inner(xz) if self._fuses(xz) else self._gated(xz, grid))  # [B, L, D]
        return y if self.gamma is None else y * self.gamma

    def _gated(self, xz: Tensor, grid: Any) -> Tensor:
        """[B, L, E]: all between in_proj and out_proj, by the plain operators."""
        x, z = xz.chunk(2, dim=-1)  # [B, L, E]
        y = self.layernorm(self._scanned(x.transpose(1, 2), grid))
        return y.to(z.dtype) * F.silu(z)

    def _inner(self, xz: Tensor) -> Tensor:
        """The same by one operator."""
        A, D, dt_bias = self._recurrence()
        reverse, scale = self._directions(), 0.5 if self.divide else 1.0
        weights = (self._stacked("x_proj", "weight"), self._stacked("dt_proj", "weight"), A, D, dt_bias)
        return mamba_inner(xz, *self._filters(), *weights, reverse=reverse, scale=scale)

    def _fuses(self, xz: Tensor) -> bool:
        """Whether one operator may stand for all between in_proj and out_proj: directions with layers of their own, and
        no norm.
        """
        layers = [getattr(self, name + s) for s in self.own_layers for name in ("conv1d", "x_proj", "dt_proj")]
        weights = [p for module in (self, *layers) for p in module.parameters(recurse=False)]
        return (
            type(self) is VimMixer
            and self.bimamba_type != "v1"
            and self.backend in (None, "cpu")
            and {type(layer) for layer in layers} == {nn.Conv1d, nn.Linear}
            and type(self.layernorm) is nn.Identity
            and fuses(xz.dtype, xz.device.type, self.d_inner)
            and plainly_used(xz, (self.layernorm, *layers), weights)
        )

    def _scanned(self, x: Tensor, grid: Any) -> Tensor:
        """[B, L, E]: the directions together, for x [B, E, L]; the scan walks each of them forward in its own time."""
        u = self._convolved(x, flip_output=True)
        delta, b, c = self._projected(u)
        A, D, bias = self._recurrence()
        if self.bimamba_type == "v1":
            u, delta, b, c = (torch.cat([t, t.flip(-1)], dim=1) for t in (u, delta, b, c))
            D, bias = torch.cat([D, D]), torch.cat([bias, bias])
        y = selective_scan(u, delta, A, b, c, D, bias, backend=self.backend)
        assert isinstance(y, Tensor)
        y = y.transpose(1, 2)
        if self.bimamba_type == "none":
            return y
        forward, backward = y.chunk(2, dim=-1)
        y = forward + backward.flip(1)
        return y / 2 if self.divide else y

    def _convolved(self, x: Tensor, flip_output: bool) -> Tensor:
        """[B, G*E, L]: SiLU of the causal convolution of x [B, E, L], of each direction that has its own."""
        reverse = self._directions()
        return causal_conv1d(
            x, *self._filters(), "silu", reverse=reverse, flip_output=flip_output, backend=self.backend
        )

    def _directions(self) -> tuple[bool, ...]:
        """Whether each direction that has its own layers begins with the last token."""
        return (False, True)[: len(self.own_layers)]

    def _filters(self) -> tuple[Tensor, Tensor | None]:
        """The weight [G, E, W] and the bias [G, E] of the convolutions."""
        bias = None if self.conv1d.bias is None else self._stacked("conv1d", "bias")
        return self._stacked("conv1d", "weight").squeeze(2), bias

    def _projected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """delta [B, G*E, P], B and C [B, G, N, P] of a sequence u [B, G*E, P]."""
        u = u.unflatten(1, (len(self.own_layers), self.d_inner))
        weight, dt_weight = self._stacked("x_proj", "weight"), self._stacked("dt_proj", "weight")
        x_dbl = torch.einsum("bgep,gce->bpgc", u, weight.to(u.dtype))  # [B, P, G, R + 2N]
        dt, b, c = x_dbl.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = torch.einsum("bpgr,ger->bpge", dt, dt_weight.to(dt.dtype))  # [B, P, G, E]
        return delta.flatten(2).transpose(1, 2), b.permute(0, 2, 3, 1), c.permute(0, 2, 3, 1)

    def _recurrence(self) -> tuple[Tensor, Tensor, Tensor]:
        """A [G*E, N] of every direction, D [G*E] and the bias [G*E] of delta of those that have their own, float32."""
        logs: list[Tensor] = [self.A_log] if self.bimamba_type == "none" else [self.A_log, self.A_b_log]
        skips: list[Tensor] = [self.D, self.D_b] if self.bimamba_type == "v2" else [self.D]
        bias = self._stacked("dt_proj", "bias").flatten()
        return -torch.exp(wide(torch.cat(logs))), wide(torch.cat(skips)), wide(bias)

    def _stacked(self, layer: str, parameter: str) -> Tensor:
        """[G, ...]: a parameter of the layer that each direction has of its own."""
        return torch.stack([getattr(getattr(self, layer + suffix), parameter) for suffix in self.own_layers])
