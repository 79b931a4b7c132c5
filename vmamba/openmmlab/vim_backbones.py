"""Vim and FastVim as backbones of OpenMMLab, under the names and with the arguments of the published configurations.

Source: detectors and segmentors of Zhu et al., "Vision Mamba", 2024 (VisionMambaSeg, VisionMambaDet), and Kapse et al.,
"Fast Vision Mamba", 2025 (MM_Vim, MM_FastVim).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mmengine.registry import MODELS

from vmamba.errors import UserError
from vmamba.models.class_tokens import class_token_kind
from vmamba.models.fastvim import FastVim
from vmamba.models.vim_mixer import VimMixer
from vmamba.openmmlab.plain_backbones import PlainBackbone


@MODELS.register_module()
class MM_Vim(PlainBackbone):
    """Vim without its class token; see `PlainBackbone`.

    `use_double_cls_token` and `use_middle_cls_token` say where the class tokens of the classifier stood whose weights
    are loaded. `if_cls_token` is taken for published configurations and has no effect: a file tells whether it has one.
    `use_norm_after_ssm` is of Vim with a LayerNorm, `VimLN`, as published under this name; False is for Vim itself.
    """

    def __init__(
        self,
        *args: Any,
        if_cls_token: bool = True,
        use_double_cls_token: bool = False,
        use_middle_cls_token: bool = True,
        use_norm_after_ssm: bool = True,
        **kwargs: Any,
    ) -> None:
        # A file that has a class token needs its place, whatever `if_cls_token` says of the network.
        self.trained_class_token = class_token_kind(True, use_double_cls_token, use_middle_cls_token)
        mixer = partial(VimMixer, norm_after_scan=use_norm_after_ssm)
        super().__init__(*args, if_cls_token=False, _mixer=mixer, **kwargs)


@MODELS.register_module()
class MM_FastVim(FastVim, PlainBackbone):
    """FastVim; see `PlainBackbone`."""


@MODELS.register_module()
class VisionMambaSeg(MM_Vim):
    """Vim for a segmentor, by the published arguments: `MM_Vim` without LayerNorms of its own, with a pyramid.

    - if_fpn: the pyramid of `fpn="vit"`; False gives the maps as they are.
    - use_residual_as_feature: maps of the stream instead of what the blocks add; see `feature`.
    - last_layer_process: see `PlainBackbone`; it is of the stream, as published, and needs use_residual_as_feature.
    """

    def __init__(
        self,
        *args: Any,
        out_indices: Sequence[int] = (3, 5, 7, 11),
        if_fpn: bool = True,
        use_residual_as_feature: bool = False,
        last_layer_process: str = "none",
        use_norm_after_ssm: bool = False,
        **kwargs: Any,
    ) -> None:
        if not use_residual_as_feature and last_layer_process != "none":
            raise UserError("last_layer_process: it is of the stream; set use_residual_as_feature=True, or omit it")
        super().__init__(
            *args,
            out_indices=out_indices,
            feature="residual" if use_residual_as_feature else "hidden",
            last_layer_process=last_layer_process if use_residual_as_feature else None,
            out_norm=False,
            fpn="vit" if if_fpn else None,
            use_norm_after_ssm=use_norm_after_ssm,
            **kwargs,
        )


@MODELS.register_module()
class VisionMambaDet(MM_Vim):
    """Vim for a detector, by the published arguments: the map [B, embed_dim, H/stride, W/stride] of the last block.

    `last_layer_process` as in `PlainBackbone`; "add & norm" norms, which published detectors could not.
    """

    def __init__(
        self,
        *args: Any,
        out_indices: None = None,
        last_layer_process: str = "add",
        use_norm_after_ssm: bool = False,
        **kwargs: Any,
    ) -> None:
        if out_indices is not None:
            raise UserError("out_indices: VisionMambaDet gives the map of the last block; MM_Vim gives those of others")
        super().__init__(
            *args,
            out_indices=None,
            feature="residual",
            last_layer_process=last_layer_process,
            out_norm=False,
            use_norm_after_ssm=use_norm_after_ssm,
            **kwargs,
        )
