"""The residual block of VMamba: a token mixer, then an MLP, each after its norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .forward_type import ForwardType, parse_forward_type
from .layers import LayerNorm, Mlp
from .ss2d import SS2D
from .ss2d_mamba2 import SS2DMamba2


class VSSBlock(nn.Module):
    """x + DropPath(op(norm(x))), then x + DropPath(mlp(norm2(x))); with `post_norm` the norms follow op and mlp.

    ssm_ratio 0 removes the first branch and its parameters, mlp_ratio 0 the second. Where the mixer is SS2D, the
    forward_type "m0" takes SS2DMamba2 instead.
    """

    def __init__(
        self,
        hidden_dim: int = 0,
        drop_path: float = 0.0,
        norm_layer: Callable[..., nn.Module] = LayerNorm,
        channel_first: bool = False,
        ssm_d_state: int = 16,
        ssm_ratio: float = 2.0,
        ssm_dt_rank: int | str = "auto",
        ssm_act_layer: Callable[[], nn.Module] = nn.SiLU,
        ssm_conv: int = 3,
        ssm_conv_bias: bool = True,
        ssm_drop_rate: float = 0.0,
        ssm_init: str = "v0",
        forward_type: str | ForwardType = "v05_noz",
        mlp_ratio: float = 4.0,
        mlp_act_layer: Callable[[], nn.Module] = nn.GELU,
        mlp_drop_rate: float = 0.0,
        gmlp: bool = False,
        use_checkpoint: bool = False,
        post_norm: bool = False,
        _SS2D: Callable[..., nn.Module] = SS2D,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.ssm_branch = ssm_ratio > 0
        self.mlp_branch = mlp_ratio > 0
        self.use_checkpoint = use_checkpoint
        self.post_norm = post_norm
        if self.ssm_branch:
            self.norm = norm_layer(hidden_dim, **dd)
            options = parse_forward_type(forward_type)
            mixer = SS2DMamba2 if options.ssd and _SS2D is SS2D else _SS2D
            self.op = mixer(
                d_model=hidden_dim,
                d_state=ssm_d_state,
                ssm_ratio=ssm_ratio,
                dt_rank=ssm_dt_rank,
                act_layer=ssm_act_layer,
                d_conv=ssm_conv,
                conv_bias=ssm_conv_bias,
                dropout=ssm_drop_rate,
                initialize=ssm_init,
                forward_type=forward_type,
                channel_first=channel_first,
                **dd,
            )
        self.drop_path = DropPath(drop_path)
        if self.mlp_branch:
            self.norm2 = norm_layer(hidden_dim, **dd)
            self.mlp = Mlp(
                hidden_dim,
                int(hidden_dim * mlp_ratio),
                act_layer=mlp_act_layer,
                drop=mlp_drop_rate,
                channels_first=channel_first,
                gated=gmlp,
                **dd,
            )

    def _branches(self, x: Tensor) -> Tensor:
        if self.ssm_branch:
            x = x + self.drop_path(self.norm(self.op(x)) if self.post_norm else self.op(self.norm(x)))
        if self.mlp_branch:
            x = x + self.drop_path(self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._branches, x, use_reentrant=False)
        return self._branches(x)
