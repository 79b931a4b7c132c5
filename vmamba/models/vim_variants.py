"""The published Vim models by name, and those with a LayerNorm after the scan, registered with timm.

Source of the table: the factories of github.com/hustvl/Vim, and for the LayerNorm of github.com/insitro/FastVim.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model

from .fastvim import VimLN
from .vim import Vim
from .vim_registry import create, register_alias
from .vim_registry import default_cfgs as configurations

VIM_VARIANTS = ("vim_tiny", "vim_tiny_stride8", "vim_small", "vim_small_stride8", "vim_base")
VIM_LN_VARIANTS = ("vim_ln_tiny", "vim_ln_small", "vim_ln_base", "vim_ln_large")

default_cfgs = {
    **configurations(VIM_VARIANTS, "apache-2.0"),
    **configurations(VIM_LN_VARIANTS, "cc-by-nc-sa-4.0"),
}

_TINY = dict(embed_dim=192, depth=24, final_pool_type="mean")
_SMALL = dict(embed_dim=384, depth=24, final_pool_type="mean")
_BASE = dict(embed_dim=768, depth=24, final_pool_type="mean")
_LARGE = dict(embed_dim=1024, depth=48, final_pool_type="mean")


@register_model
def vim_tiny(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-T, 7.1 M parameters."""
    return create(Vim, "vim_tiny", pretrained, _TINY, **kwargs)


@register_model
def vim_tiny_stride8(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-T+ with a patch every 8 pixels, 7.3 M parameters."""
    return create(Vim, "vim_tiny_stride8", pretrained, dict(_TINY, stride=8), **kwargs)


@register_model
def vim_small(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S, 25.8 M parameters."""
    return create(Vim, "vim_small", pretrained, _SMALL, **kwargs)


@register_model
def vim_small_stride8(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S+ with a patch every 8 pixels, 26.0 M parameters."""
    return create(Vim, "vim_small_stride8", pretrained, dict(_SMALL, stride=8), **kwargs)


@register_model
def vim_base(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-B, 97.6 M parameters."""
    return create(Vim, "vim_base", pretrained, _BASE, **kwargs)


@register_model
def vim_ln_tiny(pretrained: bool = False, **kwargs: Any) -> VimLN:
    """Vim-T with LayerNorm, 7.2 M parameters."""
    return create(VimLN, "vim_ln_tiny", pretrained, _TINY, **kwargs)


@register_model
def vim_ln_small(pretrained: bool = False, **kwargs: Any) -> VimLN:
    """Vim-S with LayerNorm, 25.8 M parameters."""
    return create(VimLN, "vim_ln_small", pretrained, _SMALL, **kwargs)


@register_model
def vim_ln_base(pretrained: bool = False, **kwargs: Any) -> VimLN:
    """Vim-B with LayerNorm, 97.7 M parameters."""
    return create(VimLN, "vim_ln_base", pretrained, _BASE, **kwargs)


@register_model
def vim_ln_large(pretrained: bool = False, **kwargs: Any) -> VimLN:
    """Vim-L with LayerNorm, 340.2 M parameters."""
    return create(VimLN, "vim_ln_large", pretrained, _LARGE, **kwargs)


_BIMAMBA = "bimambav2_final_pool_mean_abs_pos_embed_with"
_LAYERNORM = "patch16_224_final_pool_mean_abs_pos_embed_with_midclstok_div2"
for _name, _entry in (
    (f"vim_tiny_patch16_224_{_BIMAMBA}_midclstok_div2", vim_tiny),
    (f"vim_tiny_patch16_stride8_224_{_BIMAMBA}_midclstok_div2", vim_tiny_stride8),
    (f"vim_small_patch16_224_{_BIMAMBA}_midclstok_div2", vim_small),
    (f"vim_small_patch16_stride8_224_{_BIMAMBA}_midclstok_div2", vim_small_stride8),
    (f"vim_base_patch16_224_{_BIMAMBA}_middle_cls_token_div2", vim_base),
    (f"vim_base_patch16_224_{_BIMAMBA}_midclstok_div2", vim_base),
    (f"vim_tiny_{_LAYERNORM}", vim_ln_tiny),
    (f"vim_small_{_LAYERNORM}", vim_ln_small),
    (f"vim_base_{_LAYERNORM}", vim_ln_base),
    (f"vim_large_{_LAYERNORM}", vim_ln_large),
):
    register_alias(_name, _entry)
