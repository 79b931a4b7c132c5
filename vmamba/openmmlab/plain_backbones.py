"""Vim and FastVim as backbones of OpenMMLab: maps of one size, after some of the blocks.

Source: detectors and segmentors of Zhu et al., "Vision Mamba", 2024, and Kapse et al., "Fast Vision Mamba", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from vmamba.errors import UserError
from vmamba.models.class_tokens import CLASS_TOKENS, class_token_kind, class_token_places, without_tokens
from vmamba.models.fastvim import FastVim
from vmamba.models.layers import LayerNorm
from vmamba.models.vim import Vim
from vmamba.models.vim_mixer import VimMixer
from vmamba.openmmlab.pretrained import weights_file
from vmamba.weights import LoadReport, load_checkpoint, load_weights
from vmamba.weights.loading import find_weights

FEATURES = ("hidden", "residual")


class PlainBackbone(Vim, BaseModule):
    """A tuple of maps [B, embed_dim, H/stride, W/stride], one per index of `out_indices`, of images of any size.

    Images are padded to whole patches, and class tokens are left out. The arguments are those of the classifier, and:

    - out_indices: the blocks after which maps are taken. One index gives the map itself.
    - feature: "hidden" takes what a block adds to the stream, as FastVim's configurations do; "residual" the stream.
    - out_norm: a LayerNorm of its own for each map, `outnorm_0` and so on.
    - pretrained: as for `MM_VSSM`; ``load_ema=True`` takes averaged weights where there are some.
    - frozen_stages: 0 freezes patches and positions, n also the first n blocks, -1 nothing.
    - with_cp: recompute activations in the backward.
    """

    pads_images = True
    # Which class tokens the classifier had whose weights are loaded.
    trained_class_token = "none"

    def __init__(
        self,
        *args: Any,
        out_indices: Sequence[int] = (5, 11, 17, 23),
        feature: str = "hidden",
        out_norm: bool = True,
        pretrained: str | None = None,
        load_ema: bool = False,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: None = None,
        **kwargs: Any,
    ) -> None:
        if feature not in FEATURES:
            raise UserError(f"feature: expected one of {', '.join(FEATURES)}, got {feature!r}")
        if init_cfg is not None:
            raise TypeError("init_cfg: the weights to start from are named by pretrained=...")
        super().__init__(*args, **{**kwargs, "num_classes": 0})
        depth = len(self.layers)
        if not out_indices or not all(0 <= i < depth for i in out_indices):
            raise UserError(f"out_indices: expected blocks from 0 to {depth - 1}, got {tuple(out_indices)}")
        if not -1 <= frozen_stages <= depth:
            raise UserError(f"frozen_stages: expected -1 to {depth}, got {frozen_stages}")
        if self.if_bidirectional and feature == "hidden":
            raise UserError("feature: 'hidden' is of single blocks; with if_bidirectional use feature='residual'")
        self.out_indices, self.feature, self.frozen_stages = tuple(out_indices), feature, frozen_stages
        self.norm_f = nn.Identity()
        for k in range(len(self.out_indices)):
            self.add_module(f"outnorm_{k}", LayerNorm(self.embed_dim) if out_norm else nn.Identity())
        self.layers[self._last_block(max(self.out_indices)) + 1 :].requires_grad_(False)
        self.set_grad_checkpointing(with_cp)
        self._freeze()
        self.pretrained = pretrained
        if pretrained is not None:
            report = self.load_backbone(weights_file(pretrained), load_ema)
            print_log(f"{pretrained}: {report.summary()}", logger="current")

    def load_backbone(self, path: Path, prefer_ema: bool = False) -> LoadReport:
        """Load a classifier's or a backbone's file; its class tokens go, with their rows of the position embedding.

        LayerNorms that were RMSNorms start without a bias. All else must fit.
        """
        state = find_weights(self, load_checkpoint(path), prefer_ema=prefer_ema, name=str(path)).state
        embed, kind = state.get("pos_embed"), self.trained_class_token
        if any(key.startswith("cls_token") for key in state) and embed is not None:
            places = class_token_places(kind, embed.shape[1] - CLASS_TOKENS[kind])
            state["pos_embed"] = without_tokens(embed, places)
        missing = ("outnorm_*", "layers.*.norm.bias")
        unexpected = ("head.*", "norm_f.*", "cls_token*", "rope.*")
        return load_weights(self, {"model": state}, allow_missing=missing, allow_unexpected=unexpected)

    def init_weights(self, needs_reset: bool | None = None) -> None:
        """Draw the weights as `Vim` does, where told whether to reset; a runner does not tell, and changes nothing."""
        if needs_reset is None:
            self._is_init = True
        else:
            super().init_weights(needs_reset)

    def forward(self, x: Tensor, *unused: Any) -> Any:
        branches: dict[int, Tensor] = {}

        def keep(index: int) -> Any:
            return lambda module, inputs: branches.__setitem__(index, inputs[0])

        hooks = []
        if self.feature == "hidden":  # what goes into a block's DropPath is what its mixer gave
            blocks: list[Any] = list(self.layers)
            hooks = [blocks[i].drop_path.register_forward_pre_hook(keep(i)) for i in self.out_indices]
        try:
            stages, sequence = self._stages(x)
        finally:
            for hook in hooks:
                hook.remove()
        maps = []
        for k, index in enumerate(self.out_indices):
            found = branches[index] if self.feature == "hidden" else stages[index]
            found = getattr(self, f"outnorm_{k}")(found).to(x.dtype)
            maps.append(self._map(found, sequence, "NCHW"))
        return tuple(maps) if len(maps) > 1 else maps[0]

    def _stages(self, x: Tensor) -> tuple[dict[int, Tensor], Any]:
        """The stream after each block of `out_indices`, and what is known of the sequence."""
        x, sequence = self._embedded(x)
        stages = {}
        for i, stage in enumerate(self._stream(x, sequence, self._last_block(max(self.out_indices)) + 1)):
            if i in self.out_indices:
                stages[i] = stage
        return stages, sequence

    def train(self, mode: bool = True) -> PlainBackbone:
        """Switch to training or evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        if self.pos_embed is not None:
            self.pos_embed.requires_grad_(False)
        for module in (self.patch_embed, *self.layers[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)


@MODELS.register_module()
class MM_Vim(PlainBackbone):
    """Vim without its class token; see `PlainBackbone`.

    The switches of class tokens say where that of the classifier stood whose weights are loaded.
    `use_norm_after_ssm` is of Vim with a LayerNorm, `VimLN`.
    """

    def __init__(
        self,
        *args: Any,
        if_cls_token: bool = True,
        use_double_cls_token: bool = False,
        use_middle_cls_token: bool = True,
        use_norm_after_ssm: bool = False,
        **kwargs: Any,
    ) -> None:
        self.trained_class_token = class_token_kind(if_cls_token, use_double_cls_token, use_middle_cls_token)
        mixer = partial(VimMixer, norm_after_scan=use_norm_after_ssm)
        super().__init__(*args, if_cls_token=False, _mixer=mixer, **kwargs)


@MODELS.register_module()
class MM_FastVim(FastVim, PlainBackbone):
    """FastVim; see `PlainBackbone`."""
