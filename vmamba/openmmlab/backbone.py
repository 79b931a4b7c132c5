"""VMamba as a backbone of OpenMMLab."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from vmamba.errors import UserError, closest
from vmamba.models.vssm import VSSM, Backbone
from vmamba.openmmlab.pretrained import weights_file

# Arguments of the backbones that base configurations have, and which merging leaves behind.
_OTHERS = {
    *("embed_dims", "num_heads", "window_size", "qkv_bias", "qk_scale", "attn_drop_rate", "convert_weights"),
    *("pretrain_img_size", "use_abs_pos_embed", "strides", "act_cfg", "norm_cfg", "drop_rate", "frozen_stage"),
    *("depth", "num_stages", "style", "dilations", "contract_dilation", "arch"),
}


@MODELS.register_module()
class MM_VSSM(Backbone, BaseModule):
    """A tuple of maps [B, dims[i], H_i, W_i], one per index of `out_indices`, of images of any size.

    The arguments are `Backbone`'s, as published, and these:

    - pretrained: the checkpoint to start from, a file, an address, or the name of a released model such as
      "vmamba_tiny_s1l8". Loading it reports every key, and a load that fails is an error. None starts from scratch.
    - frozen_stages: 0 freezes the stem, n also the first n stages, -1 nothing. What is frozen is in evaluation mode
      and has no gradient; the norms of the maps are new and are trained all the same.
    - with_cp: recompute activations in the backward, as `use_checkpoint`.
    - norm_eval: keep batch norms in evaluation while training.

    With ``out_indices=()`` the last stage's output itself is returned. Arguments that a configuration inherited from
    another backbone are refused; ``_delete_=True`` drops them.
    """

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: str | None = None,
        norm_layer: str = "ln",
        *,
        frozen_stages: int = -1,
        with_cp: bool = False,
        norm_eval: bool = False,
        init_cfg: None = None,
        **kwargs: Any,
    ) -> None:
        _refuse_others(kwargs, init_cfg)
        if with_cp:
            kwargs["use_checkpoint"] = True
        super().__init__(out_indices, None, norm_layer, **kwargs)
        if not -1 <= frozen_stages <= len(self.dims):
            raise UserError(f"frozen_stages: expected -1 to {len(self.dims)}, got {frozen_stages}")
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self._leave_out_unused()
        self._freeze()
        self.pretrained = pretrained
        if pretrained is not None:
            report = self.load_pretrained(str(weights_file(pretrained)))
            print_log(f"{pretrained}: {report.summary()}", logger="current")

    def init_weights(self, needs_reset: bool | None = None) -> None:
        """Draw the weights as `VSSM` does, where told whether to reset; a runner does not tell, and changes nothing.

        It calls this when the constructor has drawn or loaded the weights already.
        """
        if needs_reset is None:
            self._is_init = True
        else:
            super().init_weights(needs_reset)

    def forward(self, x: Tensor) -> Any:
        maps = super().forward(x)
        return tuple(maps) if self.out_indices else maps

    def train(self, mode: bool = True) -> MM_VSSM:
        """Switch to training or evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _NormBase):
                    module.eval()
        return self

    def _freeze(self) -> None:
        frozen: list[nn.Module] = []
        if self.frozen_stages >= 0:
            frozen = [self.patch_embed, *self.layers[: self.frozen_stages]]
            if self.pos_embed is not None:
                self.pos_embed.requires_grad_(False)
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def _leave_out_unused(self) -> None:
        """Take the gradient from the stages behind the last map, which never run: DDP waits for it otherwise."""
        if self.out_indices:
            last = max(self.out_indices)
            self.layers[last].downsample.requires_grad_(False)
            self.layers[last + 1 :].requires_grad_(False)


def _refuse_others(kwargs: dict[str, Any], init_cfg: Any) -> None:
    """Raise TypeError naming every argument that is none of this backbone's, and what to do."""
    known = {name for kind in (MM_VSSM, Backbone, VSSM) for name in inspect.signature(kind.__init__).parameters}
    known -= {"self", "kwargs", "unknown", "drop_rate", "global_pool"}
    wrong = [name for name in kwargs if name not in known and name != "ssm_rank_ratio"]
    if init_cfg is not None:
        wrong.append("init_cfg")
    if not wrong:
        return
    if set(wrong) & _OTHERS:
        raise TypeError(
            f"MM_VSSM: {', '.join(wrong)} belong to another backbone, whose settings this configuration inherits; "
            "write backbone=dict(_delete_=True, type='MM_VSSM', ...)"
        )
    if wrong == ["init_cfg"]:
        raise TypeError("MM_VSSM: the weights to start from are named by pretrained=..., not by init_cfg")
    raise TypeError(f"MM_VSSM: unknown argument '{wrong[0]}'.{closest(wrong[0], known)}")
