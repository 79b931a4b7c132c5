"""The published FastVim models by name, registered with timm.

Source of the table: Kapse et al., "Fast Vision Mamba", 2025, and the factories of github.com/insitro/FastVim.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model

from .fastvim import FastVim
from .vim_registry import create, register_alias
from .vim_registry import default_cfgs as configurations

FASTVIM_VARIANTS = ("fastvim_tiny", "fastvim_small", "fastvim_base", "fastvim_large", "fastvim_huge")

default_cfgs = configurations(FASTVIM_VARIANTS, "cc-by-nc-sa-4.0")


@register_model
def fastvim_tiny(pretrained: bool = False, **kwargs: Any) -> FastVim:
    """FastVim-T, 7.2 M parameters."""
    return create(FastVim, "fastvim_tiny", pretrained, dict(embed_dim=192, depth=24), **kwargs)


@register_model
def fastvim_small(pretrained: bool = False, **kwargs: Any) -> FastVim:
    """FastVim-S, 25.8 M parameters."""
    return create(FastVim, "fastvim_small", pretrained, dict(embed_dim=384, depth=24), **kwargs)


@register_model
def fastvim_base(pretrained: bool = False, **kwargs: Any) -> FastVim:
    """FastVim-B, 97.7 M parameters."""
    return create(FastVim, "fastvim_base", pretrained, dict(embed_dim=768, depth=24), **kwargs)


@register_model
def fastvim_large(pretrained: bool = False, **kwargs: Any) -> FastVim:
    """FastVim-L, 340.2 M parameters; no weights were published."""
    return create(FastVim, "fastvim_large", pretrained, dict(embed_dim=1024, depth=48), **kwargs)


@register_model
def fastvim_huge(pretrained: bool = False, **kwargs: Any) -> FastVim:
    """FastVim-H with patches of 14 pixels, 702.4 M parameters; no weights were published."""
    published = dict(embed_dim=1280, depth=64, patch_size=14)
    return create(FastVim, "fastvim_huge", pretrained, published, **kwargs)


_SUFFIX = "224_final_pool_mean_abs_pos_embed_with_noclstok_div2"
for _name, _entry in (
    (f"vim_tiny_patch16_{_SUFFIX}", fastvim_tiny),
    (f"vim_small_patch16_{_SUFFIX}", fastvim_small),
    (f"vim_base_patch16_{_SUFFIX}", fastvim_base),
    (f"vim_large_patch16_{_SUFFIX}", fastvim_large),
    (f"vim_huge_patch14_{_SUFFIX}", fastvim_huge),
):
    register_alias(_name, _entry)
