"""The published models for microscopy of eight channels (JUMP-CP) by name, registered with timm.

Source of the table: Kapse et al., "Fast Vision Mamba", 2025, and the recipes of github.com/insitro/FastVim; means and
deviations are those of the recipes, of pixels from 0 to 255.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model

from .channelvim import ChannelVim, FastChannelVim, FastChannelVim2d
from .vim_registry import create, register_alias
from .vim_registry import default_cfgs as configurations

CHANNEL_VARIANTS = ("channelvim_small_16", "channelvim_small_8", "fastchannelvim_small_16", "fastchannelvim_small_8")

default_cfgs = configurations(
    CHANNEL_VARIANTS,
    "cc-by-nc-sa-4.0",
    num_classes=161,
    input_size=(8, 224, 224),
    mean=(4.0317436, 1.5659352, 3.7736790, 3.4605251, 4.1723173, 6.7805298, 6.7873857, 6.7781208),
    std=(17.3184389, 12.0159183, 16.9660581, 15.0647763, 17.9641182, 21.6387663, 21.6705657, 21.6394886),
)

_SMALL = dict(embed_dim=384, depth=24, channels=8, num_classes=161, final_pool_type="mean", hcs=True)


@register_model
def channelvim_small_16(pretrained: bool = False, **kwargs: Any) -> ChannelVim:
    """ChannelVim-S/16, 25.3 M parameters."""
    return create(ChannelVim, "channelvim_small_16", pretrained, _SMALL, **kwargs)


@register_model
def channelvim_small_8(pretrained: bool = False, **kwargs: Any) -> ChannelVim:
    """ChannelVim-S/8, 25.5 M parameters."""
    return create(ChannelVim, "channelvim_small_8", pretrained, dict(_SMALL, patch_size=8), **kwargs)


@register_model
def fastchannelvim_small_16(pretrained: bool = False, pools_two_axes: bool = False, **kwargs: Any) -> FastChannelVim:
    """FastChannelVim-S/16, 25.3 M parameters; with `pools_two_axes` it is a `FastChannelVim2d`."""
    kind = FastChannelVim2d if pools_two_axes else FastChannelVim
    return create(kind, "fastchannelvim_small_16", pretrained, _SMALL, **kwargs)


@register_model
def fastchannelvim_small_8(pretrained: bool = False, pools_two_axes: bool = False, **kwargs: Any) -> FastChannelVim:
    """FastChannelVim-S/8, 25.5 M parameters; with `pools_two_axes` it is a `FastChannelVim2d`."""
    kind = FastChannelVim2d if pools_two_axes else FastChannelVim
    return create(kind, "fastchannelvim_small_8", pretrained, dict(_SMALL, patch_size=8), **kwargs)


_NAME = "channelvim_small_patch16_224_final_pool_mean_abs_pos_embed_with"
register_alias(f"{_NAME}_noclstok_div2", fastchannelvim_small_16)
register_alias(f"{_NAME}_midclstok_div2", channelvim_small_16)
