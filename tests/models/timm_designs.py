"""How the two designs behind our names are made small, and where they keep what the tests of timm's interface ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vmamba.models import Vim

SIZE = (64, 96)


@dataclass(frozen=True)
class Design:
    """What the tests ask of a design; `small` builds four blocks of width 16 at first.

    `embedded` makes a model keep a position embedding for 64 x 64 pixels, and `misspelt` is (a wrong argument, the one
    meant).
    """

    small: dict[str, Any]
    embedded: dict[str, Any]
    widths: tuple[int, ...]
    mixer: str
    misspelt: tuple[str, str]
    hooks_see_tokens: bool
    unweighted: frozenset[str]

    def blocks(self, model: Any) -> list[Any]:
        """The blocks from the first to the last."""
        return [block for stage in model.layers for block in (stage.blocks if hasattr(stage, "blocks") else [stage])]

    def sides(self, model: Any) -> list[tuple[int, int]]:
        """The sizes of the maps of images of `SIZE`."""
        heights, widths = (model.stage_sizes(n) for n in SIZE)
        return list(zip(heights, widths, strict=True)) * (len(self.widths) // len(heights))

    def dropout(self, model: Any) -> Any:
        """The layer whose rate is `drop_rate`."""
        return model.pos_drop if isinstance(model, Vim) else model.classifier.drop

    def as_map(self, model: Any, features: Tensor) -> Tensor:
        """The last features [B, C, H, W], without class tokens, from what `forward_features` gives."""
        if not isinstance(model, Vim):
            return features.permute(0, 3, 1, 2) if model.output_fmt == "NHWC" else features
        height, width = self.sides(model)[-1]
        tokens = features
        if model.class_token != "none":
            place = height * width // 2
            tokens = torch.cat([tokens[:, :place], tokens[:, place + 1 :]], 1)
        return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


VMAMBA = Design(
    small=dict(depths=(1, 1, 1, 1), dims=16),
    embedded=dict(posembed=True, imgsize=64),
    widths=(16, 32, 64, 128),
    mixer="op",
    misspelt=("mlp_ration", "mlp_ratio"),
    hooks_see_tokens=False,
    unweighted=frozenset({"pos_embed"}),
)
VIM = Design(
    small=dict(depth=4, embed_dim=16),
    embedded=dict(img_size=64),
    widths=(16, 16, 16, 16),
    mixer="mixer",
    misspelt=("drop_path_rat", "drop_path_rate"),
    hooks_see_tokens=True,
    unweighted=frozenset({"pos_embed", "cls_token", "cls_token_head", "cls_token_tail", "dist_token"}),
)


def design_of(name: str) -> Design:
    """The design of a model of ours."""
    return VMAMBA if "vmamba" in name else VIM
