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
        self.channel_first = channel_first
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

    def _mixed(self, x: Tensor) -> Tensor:
        return self.norm(self.op(x)) if self.post_norm else self.op(self.norm(x))

    def _fed(self, x: Tensor) -> Tensor:
        return self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x))

    def _branches(self, x: Tensor) -> Tensor:
        if self.ssm_branch:
            x = self._add(x, self._mixed)
        if self.mlp_branch:
            x = self._add(x, self._fed)
        return x

    def _add(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """x + DropPath(branch(x)); a CPU computes the branch of the images alone that DropPath would keep."""
        if not self._skips_images(x):
            return x + self.drop_path(branch(x))
        keep = 1 - self.drop_path.drop_prob
        mask = x.new_empty(x.shape[0]).bernoulli_(keep)  # drawn as DropPath draws it
        kept = mask.nonzero().flatten()
        if len(kept) == len(x):
            return torch.add(x, branch(x), alpha=1 / keep)
        if len(kept) == 0:  # a parameter without a gradient would stall distributed training
            return x + branch(x) * 0
        to_rows, back = ((0, 2, 3, 1), (0, 3, 1, 2)) if self.channel_first else ((0, 1, 2, 3), (0, 1, 2, 3))
        rows = x.permute(to_rows)  # as they lie in memory
        part = branch(rows.index_select(0, kept).permute(back)).permute(to_rows)
        dtype = torch.promote_types(x.dtype, part.dtype)
        return rows.to(dtype).index_add(0, kept, part.to(dtype), alpha=1 / keep).permute(back)

    def _skips_images(self, x: Tensor) -> bool:
        """Whether DropPath drops images that may be left out: no image looks at another, no graph or GPU waits."""
        drop = self.drop_path
        return (
            type(x) is Tensor
            and type(drop) is DropPath
            and drop.training
            and 0 < drop.drop_prob < 1
            and drop.scale_by_keep
            and not (drop._forward_hooks or drop._forward_pre_hooks)
            and not (drop._backward_hooks or drop._backward_pre_hooks)
            and x.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules())
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._branches, x, use_reentrant=False)
        return self._branches(x)
