"""SS2DMamba2, the token mixer of the forward types "m0": SS2D with the state-space dual scan of mamba2 inside.

B batch, I = int(ssm_ratio * D) inner width, K sequences of the scan order, R heads of width P = I / R for each of them,
N = d_state, L = H*W. One step size and one decay serve a whole head, so the state of a head is a matrix [P, N].
Source: Dao and Gu, "Transformers are SSMs", 2024; the two-dimensional form: github.com/MzeroMiko/VMamba (MIT).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba_kernels import cross_merge, cross_scan, ssd

from ..errors import UserError
from .forward_type import ForwardType
from .layers import to_channel_first, to_channel_last
from .ss2d import SS2D, _wide


class SS2DMamba2(SS2D):
    """Maps [B, H, W, D], or [B, D, H, W] if `channel_first`, to the same shape.

    Takes the arguments of SS2D. `dt_rank` is the number of heads R of each direction, which must divide I; the
    initialisations are "v1" and "v2"; dt_min to dt_init_floor belong to SS2D's "v0" and have no effect. Different from
    the published module: gate, channel-first layout, any H and W and any scan order work; no state is carried from one
    call to the next.
    """

    ssd = True
    initialisations = ("v1", "v2")

    def __init__(
        self,
        d_model: int = 96,
        d_state: int = 64,
        ssm_ratio: float = 1.0,
        initialize: str = "v2",
        forward_type: str | ForwardType = "m0_noz",
        **kwargs: Any,
    ) -> None:
        super().__init__(d_model, d_state, ssm_ratio, initialize=initialize, forward_type=forward_type, **kwargs)

    def _make_scan_parameters(self, **dd: Any) -> None:
        groups, heads = self.k_group, self.dt_rank
        if self.d_inner % heads:
            raise UserError(
                f"dt_rank: the {heads} heads of a direction must divide ssm_ratio * d_model = {self.d_inner}; "
                f"set ssm_dt_rank to a divisor of it"
            )
        self.Ds = nn.Parameter(torch.empty(groups, heads, self.d_inner // heads, **dd))
        self.A_logs = nn.Parameter(torch.empty(groups, heads, **dd))
        self.dt_projs_bias = nn.Parameter(torch.empty(groups, heads, **dd))

    def _make_convolution(self, kernel: int, bias: bool, **dd: Any) -> nn.Module:
        """The depthwise convolution, on [B, H, W, I]."""
        return nn.Sequential(to_channel_first(), super()._make_convolution(kernel, bias, **dd), to_channel_last())

    def _convolved(self, x: Tensor) -> Tensor:
        return x if self.conv2d is None else self.conv2d(x)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw x_proj, the step sizes, A and D anew; the linear and convolution layers have their own."""
        bound = self.d_inner**-0.5
        self.x_proj_weight.uniform_(-bound, bound)
        self.Ds.fill_(1.0)
        if self.initialize == "v1":
            self.A_logs.normal_()
            self.dt_projs_bias.normal_().mul_(0.1)
        else:
            self.A_logs.zero_()
            self.dt_projs_bias.uniform_().mul_(0.1)

    def _scan(self, x: Tensor, order: str, groups: slice | None = None, merged: bool = True) -> Tensor:
        """[B, H, W, I]: the scan of x [B, H, W, I] along an order."""
        B, H, W, inner = x.shape
        K, heads, states = self.k_group, self.dt_rank, self.d_state
        x_dbl = F.linear(x, self.x_proj_weight.flatten(0, 1))  # [B, H, W, K * (R + 2N)]
        bias = getattr(self, "x_proj_bias", None)
        if bias is not None:
            x_dbl = x_dbl + bias.flatten().to(x_dbl.dtype)
        layout: dict[str, Any] = {"in_channel_first": False, "out_channel_first": False}
        x_dbl = cross_scan(x_dbl.unflatten(-1, (K, heads + 2 * states)), order, one_by_one=True, **layout)
        dt, b, c = x_dbl.split([heads, states, states], dim=-1)  # [B, L, K, R], [B, L, K, N] twice
        u = cross_scan(x, order, **layout).reshape(B, H * W, K * heads, inner // heads)
        dt = dt.flatten(2)
        if self.options.fp32_scan:
            u, dt, b, c = _wide(u), _wide(dt), _wide(b), _wide(c)
        A = -torch.exp(_wide(self.A_logs)).flatten()
        y = ssd(u, dt, A, b, c, self.Ds.flatten(0, 1), self.dt_projs_bias.flatten(), backend=self.options.backend)
        assert isinstance(y, Tensor)
        y = y.reshape(B, H, W, K, inner)
        return cross_merge(y, order, **layout).view(B, H, W, inner)
