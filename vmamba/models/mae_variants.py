"""The published masked autoencoders of FastVim and Vim by name, registered with timm.

Source of the table: Kapse et al., "Fast Vision Mamba", 2025, and the factories of github.com/insitro/FastVim.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model

from ..errors import UserError
from .mae import FastMaskVim, MaskedAutoencoder, VimMAE
from .vim_registry import create, register_alias
from .vim_registry import default_cfgs as configurations

MAE_VARIANTS = ("fastmaskvim_base", "fastmaskvim_large", "fastmaskvim_huge", "vim_mae_base", "vim_mae_large")

default_cfgs = configurations(MAE_VARIANTS, "cc-by-nc-sa-4.0", num_classes=0, classifier="")

_BASE = dict(embed_dim=768, depth=24, decoder_embed_dim=512, decoder_depth=2)
_LARGE = dict(embed_dim=1024, depth=48, decoder_embed_dim=512, decoder_depth=2)
_HUGE = dict(embed_dim=1280, depth=64, patch_size=14, decoder_embed_dim=512, decoder_depth=2)


def _create(kind: type[MaskedAutoencoder], variant: str, pretrained: bool, published: dict[str, Any], **kwargs: Any):
    if kwargs.get("features_only"):
        raise UserError(f"features_only: {variant} gives no maps; load its weights into its FastVim or VimLN")
    return create(kind, variant, pretrained, published, **kwargs)


@register_model
def fastmaskvim_base(pretrained: bool = False, **kwargs: Any) -> FastMaskVim:
    """FastMaskVim-B, 101.4 M parameters."""
    return _create(FastMaskVim, "fastmaskvim_base", pretrained, _BASE, **kwargs)


@register_model
def fastmaskvim_large(pretrained: bool = False, **kwargs: Any) -> FastMaskVim:
    """FastMaskVim-L, 343.9 M parameters; no weights were published."""
    return _create(FastMaskVim, "fastmaskvim_large", pretrained, _LARGE, **kwargs)


@register_model
def fastmaskvim_huge(pretrained: bool = False, **kwargs: Any) -> FastMaskVim:
    """FastMaskVim-H with patches of 14 pixels, 705.8 M parameters; no weights were published."""
    return _create(FastMaskVim, "fastmaskvim_huge", pretrained, _HUGE, **kwargs)


@register_model
def vim_mae_base(pretrained: bool = False, **kwargs: Any) -> VimMAE:
    """Vim-B's masked autoencoder, 101.4 M parameters."""
    return _create(VimMAE, "vim_mae_base", pretrained, _BASE, **kwargs)


@register_model
def vim_mae_large(pretrained: bool = False, **kwargs: Any) -> VimMAE:
    """Vim-L's masked autoencoder, 343.9 M parameters; no weights were published."""
    return _create(VimMAE, "vim_mae_large", pretrained, _LARGE, **kwargs)


for _name, _entry in (
    ("mae_FastVim_base_dec512d2b", fastmaskvim_base),
    ("mae_FastVim_large_dec512d2b", fastmaskvim_large),
    ("mae_FastVim_huge_dec512d2b", fastmaskvim_huge),
    ("mae_vim_base_dec512d2b", vim_mae_base),
    ("mae_vim_large_dec512d2b", vim_mae_large),
):
    register_alias(_name, _entry)
