"""What Vim and FastVim share as backbones of OpenMMLab: maps of one size, after some of the blocks.

Source: detectors and segmentors of Zhu et al., "Vision Mamba", 2024, and Kapse et al., "Fast Vision Mamba", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn

from vmamba.errors import UserError
from vmamba.models.class_tokens import CLASS_TOKENS, class_token_places, without_tokens
from vmamba.models.layers import LayerNorm
from vmamba.models.rope import rotated
from vmamba.models.vim import Vim
from vmamba.openmmlab.pretrained import weights_file
from vmamba.openmmlab.vit_pyramid import vit_pyramid
from vmamba.weights import LoadReport, load_checkpoint, load_weights
from vmamba.weights.loading import find_weights

FEATURES = ("hidden", "residual")
PYRAMIDS = (None, "vit")
LAST_LAYER = ("none", "add", "add & norm")


class PlainBackbone(Vim, BaseModule):
    """A tuple of maps [B, embed_dim, H/stride, W/stride], one per index of `out_indices`, of images of any size.

    Images are padded to whole patches, and class tokens are left out. The arguments are those of the classifier, and:

    - out_indices: the blocks after which maps are taken, None for the last. One index gives the map itself.
    - feature: "hidden" takes what a block adds to the stream; "residual" the stream as the next block is given it.
    - last_layer_process: of feature="residual", what is taken after the last block: "add" (default) the stream,
      "add & norm" the normed stream, "none" what the block adds.
    - out_norm: a LayerNorm of its own for each map, `outnorm_0` and so on.
    - fpn: "vit" brings the maps to 1/4, 1/8, 1/16 and 1/32 of the image's size; one map makes all four.
      `norm_cfg` is of the norm in it (default batch norm).
    - pretrained: as for `MM_VSSM`; ``load_ema=True`` takes averaged weights where there are some.
    - frozen_stages: 0 freezes patches and positions, n also the first n blocks, -1 nothing.
    - with_cp, or use_checkpoint: recompute activations in the backward.
    """

    pads_images = True
    # Which class tokens the classifier had whose weights are loaded, if it had any.
    trained_class_token = "none"

    def __init__(
        self,
        *args: Any,
        out_indices: Sequence[int] | None = (5, 11, 17, 23),
        feature: str = "hidden",
        last_layer_process: str | None = None,
        out_norm: bool = True,
        fpn: str | None = None,
        norm_cfg: dict[str, Any] | None = None,
        pretrained: str | None = None,
        load_ema: bool = False,
        frozen_stages: int = -1,
        with_cp: bool = False,
        use_checkpoint: bool = False,
        init_cfg: None = None,
        **kwargs: Any,
    ) -> None:
        _check_features(feature, last_layer_process, fpn, norm_cfg)
        if init_cfg is not None:
            raise TypeError("init_cfg: the weights to start from are named by pretrained=...")
        super().__init__(*args, **{**kwargs, "num_classes": 0})
        depth = len(self.layers)
        out_indices = (depth - 1,) if out_indices is None else out_indices
        if not out_indices or not all(0 <= i < depth for i in out_indices):
            raise UserError(f"out_indices: expected blocks from 0 to {depth - 1}, got {tuple(out_indices)}")
        if last_layer_process not in (None, "none") and depth - 1 not in out_indices:  # "none" is a published default
            raise UserError(f"last_layer_process: it is of the last block, {depth - 1}, and out_indices leave that out")
        if not -1 <= frozen_stages <= depth:
            raise UserError(f"frozen_stages: expected -1 to {depth}, got {frozen_stages}")
        if self.if_bidirectional and (feature == "hidden" or last_layer_process == "none"):
            # The second block of a pair has the tokens in reversed order.
            raise UserError(
                "if_bidirectional: feature='hidden' and last_layer_process='none' are of single blocks; "
                "take the stream of the pairs, feature='residual' and last_layer_process='add'"
            )
        self.out_indices, self.feature, self.frozen_stages = tuple(out_indices), feature, frozen_stages
        self.last_layer_process, self.fpn = last_layer_process or "add", fpn
        if self.last_layer_process != "add & norm":
            # Published segmentors hold the final norm even where nothing is normed.
            self.norm_f = self.norm_f.requires_grad_(False) if fpn else nn.Identity()
        for k in range(len(self.out_indices)):
            self.add_module(f"outnorm_{k}", LayerNorm(self.embed_dim) if out_norm else nn.Identity())
        if fpn:
            if len(self.out_indices) not in (1, 4):
                raise UserError(f"fpn: it takes 1 or 4 maps, and out_indices are {self.out_indices}")
            for k, level in enumerate(vit_pyramid(self.embed_dim, self.patch_embed.proj.stride[0], norm_cfg), start=1):
                self.add_module(f"fpn{k}", level)
        self.layers[self._last_block(max(self.out_indices)) + 1 :].requires_grad_(False)
        self.set_grad_checkpointing(with_cp or use_checkpoint)
        self._freeze()
        self.pretrained = pretrained
        if pretrained is not None:
            report = self.load_backbone(weights_file(pretrained), load_ema)
            print_log(f"{pretrained}: {report.summary()}", logger="current")

    def load_backbone(self, path: Path, prefer_ema: bool = False) -> LoadReport:
        """Load a classifier's or a backbone's file; its class tokens go, with their rows of the position embedding.

        LayerNorms that were RMSNorms start without a bias. All else must fit.
        """
        found = find_weights(self, load_checkpoint(path), prefer_ema=prefer_ema, name=str(path)).state
        state = {key: value for key, value in found.items() if not key.startswith("rope.")}
        embed, kind = state.get("pos_embed"), self.trained_class_token
        if any(key.startswith("cls_token") for key in state) and embed is not None:
            places = class_token_places(kind, embed.shape[1] - CLASS_TOKENS[kind])
            state["pos_embed"] = without_tokens(embed, places)
        missing = ("outnorm_*", "layers.*.norm.bias", "norm_f.*", "fpn*", "rope.*")
        unexpected = ("head.*", "norm_f.*", "cls_token*")
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

        # What goes into a block's DropPath is what its mixer gave.
        blocks: list[Any] = list(self.layers)
        hooks = [blocks[i].drop_path.register_forward_pre_hook(keep(i)) for i in self.out_indices if self._is_branch(i)]
        try:
            stages, sequence = self._stages(x)
        finally:
            for hook in hooks:
                hook.remove()
        maps = []
        for k, index in enumerate(self.out_indices):
            found = branches[index] if index in branches else self._given_on(stages[index], index, sequence)
            found = getattr(self, f"outnorm_{k}")(found).to(x.dtype)
            maps.append(self._map(found, sequence, "NCHW"))
        if self.fpn:
            maps = [getattr(self, f"fpn{k + 1}")(maps[k % len(maps)]) for k in range(4)]
        return tuple(maps) if len(maps) > 1 else maps[0]

    def _is_branch(self, index: int) -> bool:
        """Whether the map of a block is what it adds to the stream."""
        last = index == len(self.layers) - 1
        return self.feature == "hidden" or (last and self.last_layer_process == "none")

    def _given_on(self, stream: Tensor, index: int, sequence: Any) -> Tensor:
        """The stream after a block as the next one is given it, and after the last block as configured."""
        if index == len(self.layers) - 1:
            return self._normed(stream) if self.last_layer_process == "add & norm" else stream
        turns = self.if_rope_residual and sequence.rotation is not None
        return rotated(stream, sequence.rotation) if turns else stream

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


def _check_features(
    feature: str, last_layer_process: str | None, fpn: str | None, norm_cfg: dict[str, Any] | None
) -> None:
    """Raise UserError for a wrong word, and for one that would have no effect."""
    if feature not in FEATURES:
        raise UserError(f"feature: expected one of {', '.join(FEATURES)}, got {feature!r}")
    if last_layer_process is not None and last_layer_process not in LAST_LAYER:
        raise UserError(f"last_layer_process: expected one of {', '.join(LAST_LAYER)}, got {last_layer_process!r}")
    if last_layer_process is not None and feature == "hidden":
        raise UserError("last_layer_process: it is of the stream; set feature='residual', or leave it out")
    if fpn not in PYRAMIDS:
        raise UserError(f"fpn: expected None or 'vit', got {fpn!r}")
    if norm_cfg is not None and fpn is None:
        raise UserError("norm_cfg: it is of the norm in the pyramid, and there is none; leave it out")
