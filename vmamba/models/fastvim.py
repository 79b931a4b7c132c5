"""FastVim, whose scans walk over pooled rows and columns of the image, and Vim with a LayerNorm after its scans.

Source: Kapse et al., "Fast Vision Mamba: Pooling Spatial Dimensions for Accelerated Processing", 2025 (arXiv
2502.00594). The keys are the published ones. Different from the published system: any grid at forward, the stride is
honoured, and the gate is there on every path.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ..errors import UserError
from .fastvim_mixer import FastVimMixer
from .layers import find
from .vim import Vim
from .vim_mixer import VimMixer


class FastVim(Vim):
    """Maps images [B, channels, H, W] of any size, padded to whole patches, to logits [B, num_classes].

    It has no class token: the mean of all tokens goes to the head. Even blocks pool the tokens of each row, odd blocks
    those of each column.

    Args:
        scanpath_type: "rowwise", or "colwise" for tokens column by column, which exchanges rows and columns throughout.
        use_norm_after_ssm: the mixers' LayerNorm before the gate. rotate_every_block: False pools rows in every block.
        collapse_method: "mean" or "max". scaling_factor: of the pooled tokens; 1 minus the masked part of the images
            that a masked autoencoder saw.
        use_our_selective_scan: kept for published configurations; there is one scan here.
        The others are those of `Vim`, but for the class tokens'.
    """

    pads_images = True

    def __init__(
        self,
        *args: Any,
        scanpath_type: str = "rowwise",
        use_norm_after_ssm: bool = True,
        rotate_every_block: bool = True,
        collapse_method: str = "mean",
        use_our_selective_scan: bool = False,
        scaling_factor: float = 1.0,
        final_pool_type: str = "mean",
        if_cls_token: bool = False,
        **kwargs: Any,
    ) -> None:
        if if_cls_token:
            raise UserError("if_cls_token: FastVim pools tokens and has no class token; VimLN has one")
        self.scans_columns = find("scanpath_type", scanpath_type, ("rowwise", "colwise")) == "colwise"
        mixer = partial(
            FastVimMixer,
            collapse_method=collapse_method,
            scaling_factor=scaling_factor,
            norm_after_scan=use_norm_after_ssm,
        )
        super().__init__(  # type: ignore[misc]  # *args end before these
            *args, if_cls_token=False, final_pool_type=final_pool_type, _mixer=mixer, **kwargs
        )
        turned: list[Any] = list(self.layers)[1::2] if rotate_every_block else []
        for block in turned:
            block.swaps = (0, 1)


class VimLN(Vim):
    """Vim whose mixers norm the scans' mean before the gate, as FastVim's do; the arguments are those of `Vim`.

    With `use_norm_after_ssm=False` it is Vim itself.
    """

    def __init__(self, *args: Any, use_norm_after_ssm: bool = True, **kwargs: Any) -> None:
        mixer = partial(VimMixer, norm_after_scan=use_norm_after_ssm)
        super().__init__(*args, _mixer=mixer, **kwargs)
