"""The models: importing this package registers each of them with timm."""

from __future__ import annotations

from fnmatch import fnmatchcase

from timm.models import get_arch_pretrained_cfgs

from .channelvim import ChannelVim, FastChannelVim, FastChannelVim2d
from .channelvim_variants import CHANNEL_VARIANTS
from .fastvim import FastVim, VimLN
from .fastvim_variants import FASTVIM_VARIANTS
from .forward_type import ForwardType, parse_forward_type
from .mae import FastMaskVim, VimMAE
from .mae_variants import MAE_VARIANTS
from .ss2d import SS2D
from .ss2d_mamba2 import SS2DMamba2
from .vim import Vim
from .vim_registry import LONG_NAMES
from .vim_variants import VIM_LN_VARIANTS, VIM_VARIANTS
from .vssm import VSSM, Backbone
from .vssm_keys import rename_published_keys, resize_pos_embed
from .vssm_variants import (
    VARIANTS,
    vanilla_vmamba_base,
    vanilla_vmamba_small,
    vanilla_vmamba_tiny,
    vmamba_base_m2,
    vmamba_base_s1l20,
    vmamba_base_s2l15,
    vmamba_small_m2,
    vmamba_small_s1l20,
    vmamba_small_s2l15,
    vmamba_tiny_0220,
    vmamba_tiny_0229,
    vmamba_tiny_0229flex,
    vmamba_tiny_m2,
    vmamba_tiny_s1l8,
    vmamba_tiny_s2l5,
)

__all__ = [
    "SS2D",
    "SS2DMamba2",
    "VSSM",
    "Backbone",
    "ChannelVim",
    "FastChannelVim",
    "FastChannelVim2d",
    "FastMaskVim",
    "FastVim",
    "ForwardType",
    "Vim",
    "VimLN",
    "VimMAE",
    "model_names",
    "model_tags",
    "parse_forward_type",
    "rename_published_keys",
    "resize_pos_embed",
    "short_name",
    "vanilla_vmamba_base",
    "vanilla_vmamba_small",
    "vanilla_vmamba_tiny",
    "vmamba_base_m2",
    "vmamba_base_s1l20",
    "vmamba_base_s2l15",
    "vmamba_small_m2",
    "vmamba_small_s1l20",
    "vmamba_small_s2l15",
    "vmamba_tiny_0220",
    "vmamba_tiny_0229",
    "vmamba_tiny_0229flex",
    "vmamba_tiny_m2",
    "vmamba_tiny_s1l8",
    "vmamba_tiny_s2l5",
]


def model_names(pattern: str = "") -> list[str]:
    """The sorted names that this package registers with timm, those matching a glob pattern if one is given."""
    families = (VARIANTS, VIM_VARIANTS, VIM_LN_VARIANTS, FASTVIM_VARIANTS, MAE_VARIANTS, CHANNEL_VARIANTS)
    names = [name for family in families for name in family]
    return sorted(name for name in names if not pattern or fnmatchcase(name, pattern))


def short_name(name: str) -> str | None:
    """The one of `model_names` that a name means; it may be a published long name, and end in one of timm's tags.

    None where it means none of them.
    """
    plain, _, tag = name.partition(".")
    short = LONG_NAMES.get(plain, plain)
    known = short in model_names() and (not tag or tag in model_tags(short))
    return short if known else None


def model_tags(short: str) -> list[str]:
    """timm's tags of one of `model_names`, as ``in1k`` in ``vim_tiny.in1k``."""
    return [name.partition(".")[2] for name in get_arch_pretrained_cfgs(short)]
