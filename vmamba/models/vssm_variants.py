"""The published VMamba models by name, registered with timm.

Source of the table: github.com/MzeroMiko/VMamba, its configs and first README.
"""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from ..weights.adapting import weights_for_timm
from ..weights.fetching import fetch_pretrained
from ..weights.released import released_classifier
from .vssm import VSSM

_VANILLA = dict(
    ssm_d_state=16,
    ssm_ratio=2.0,
    ssm_conv_bias=True,
    forward_type="v0",
    mlp_ratio=0.0,
    downsample_version="v1",
    patchembed_version="v1",
)
_VMAMBA = dict(
    ssm_d_state=1,
    ssm_conv_bias=False,
    forward_type="v05_noz",
    mlp_ratio=4.0,
    downsample_version="v3",
    patchembed_version="v2",
)
_S2 = dict(_VMAMBA, ssm_ratio=2.0)
_S1 = dict(_VMAMBA, ssm_ratio=1.0)
_MAMBA2 = dict(
    ssm_d_state=64,
    ssm_ratio=1.0,
    ssm_act_layer="gelu",
    ssm_conv_bias=False,
    ssm_init="v2",
    forward_type="m0_noz",
    mlp_ratio=4.0,
    downsample_version="v3",
    patchembed_version="v2",
)

VARIANTS = (
    "vanilla_vmamba_tiny",
    "vanilla_vmamba_small",
    "vanilla_vmamba_base",
    "vmamba_tiny_s2l5",
    "vmamba_small_s2l15",
    "vmamba_base_s2l15",
    "vmamba_tiny_s1l8",
    "vmamba_small_s1l20",
    "vmamba_base_s1l20",
    "vmamba_tiny_0220",
    "vmamba_tiny_0229",
    "vmamba_tiny_0229flex",
    "vmamba_tiny_m2",
    "vmamba_small_m2",
    "vmamba_base_m2",
)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 224 / 256,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.0",
        "classifier": "classifier.head",
        "license": "mit",
        **kwargs,
    }


def _url(name: str) -> str:
    released = released_classifier(name)
    return released.url if released else ""


default_cfgs = generate_default_cfgs({f"{name}.in1k": _cfg(url=_url(name), custom_load=True) for name in VARIANTS})


def checkpoint_filter_fn(state_dict: dict[str, Any], model: VSSM) -> dict[str, Tensor]:
    """The weights of a published file under this model's names, its position embedding resized to the model's.

    Head and first convolution may differ, which timm adapts; anything else that does is a `WeightsDoNotFit`.
    """
    return weights_for_timm(model, state_dict)


def _create(variant: str, pretrained: bool, channel_first: bool, published: dict[str, Any], **kwargs: Any) -> Any:
    """The variant with its published arguments, those of the caller taking precedence."""
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if pretrained and not kwargs.get("pretrained_cfg") and not ({"file", "url", "state_dict"} & set(overlay)):
        kwargs["pretrained_cfg_overlay"] = {**overlay, "file": str(fetch_pretrained(variant))}
    arguments = {"norm_layer": "ln2d" if channel_first else "ln", **published, **kwargs}
    stages = len(arguments["depths"])
    out_indices = arguments.pop("out_indices", tuple(range(stages)))
    return build_model_with_cfg(
        VSSM,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **arguments,
    )


@register_model
def vanilla_vmamba_tiny(pretrained: bool = False, channel_first: bool = False, **kwargs: Any) -> VSSM:
    """Vanilla-VMamba-T, 22.9 M parameters."""
    published = dict(_VANILLA, dims=96, depths=(2, 2, 9, 2), drop_path_rate=0.2)
    return _create("vanilla_vmamba_tiny", pretrained, channel_first, published, **kwargs)


@register_model
def vanilla_vmamba_small(pretrained: bool = False, channel_first: bool = False, **kwargs: Any) -> VSSM:
    """Vanilla-VMamba-S, 44.4 M parameters."""
    published = dict(_VANILLA, dims=96, depths=(2, 2, 27, 2), drop_path_rate=0.3)
    return _create("vanilla_vmamba_small", pretrained, channel_first, published, **kwargs)


@register_model
def vanilla_vmamba_base(pretrained: bool = False, channel_first: bool = False, **kwargs: Any) -> VSSM:
    """Vanilla-VMamba-B, 76.3 M parameters."""
    published = dict(_VANILLA, dims=128, depths=(2, 2, 27, 2), drop_path_rate=0.6)
    return _create("vanilla_vmamba_base", pretrained, channel_first, published, **kwargs)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, channel_first: bool = True, **kwargs: Any) -> VSSM:
    """VMamba-T[s2l5], 30.7 M parameters."""
    published = dict(_S2, dims=96, depths=(2, 2, 5, 2), drop_path_rate=0.2)
    return _create("vmamba_tiny_s2l5", pretrained, channel_first, published, **kwargs)


@register_model
def vmamba_small_s2l15(pretrained: bool = False, channel_first: bool = True, **kwargs: Any) -> VSSM:
    """VMamba-S[s2l15], 50.1 M parameters."""
    published = dict(_S2, dims=96, depths=(2, 2, 15, 2), drop_path_rate=0.3)
    return _create("vmamba_small_s2l15", pretrained, channel_first, published, **kwargs)


@register_model
def vmamba_base_s2l15(pretrained: bool = False, channel_first: bool = True, **kwargs: Any) -> VSSM:
    """VMamba-B[s2l15], 88.6 M parameters."""
    published = dict(_S2, dims=128, depths=(2, 2, 15, 2), drop_path_rate=0.6)
    return _create("vmamba_base_s2l15", pretrained, channel_first, published, **kwargs)


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, channel_first: bool = True, **kwargs: Any) -> VSSM:
    """VMamba-T[s1l8], 30.2 M parameters."""
    published = dict(_S1, dims=96, depths=(2, 2, 8, 2), drop_path_rate=0.2)
    return _create("vmamba_tiny_s1l8", pretrained, channel_first, published, **kwargs)


@register_model
def vmamba_small_s1l20(pretrained: bool = False, channel_first: bool = True, **kwargs: Any) -> VSSM:
    """VMamba-S[s1l20], 49.0 M parameters."""
    published = dict(_S1, dims=96, depths=(2, 2, 20, 2), drop_path_rate=0.3)
    return _create("vmamba_small_s1l20", pretrained, channel_first, published, **kwargs)


@register_model
def vmamba_base_s1l20(pretrained: bool = False, channel_first: bool = True, **kwargs: Any) -> VSSM:
    """VMamba-B[s1l20], 86.6 M parameters."""
    published = dict(_S1, dims=128, depths=(2, 2, 20, 2), drop_path_rate=0.5)
    return _create("vmamba_base_s1l20", pretrained, channel_first, published, **kwargs)


@register_model
def vmamba_tiny_0220(pretrained: bool = False, channel_first: bool = False, **kwargs: Any) -> VSSM:
    """VMamba-T(0220) of the first README, with a gate, 32.5 M parameters."""
    published = dict(_S2, dims=96, depths=(2, 2, 4, 2), drop_path_rate=0.2, forward_type="v05")
    return _create("vmamba_tiny_0220", pretrained, channel_first, published, **kwargs)


@register_model
def vmamba_tiny_0229(pretrained: bool = False, channel_first: bool = False, **kwargs: Any) -> VSSM:
    """VMamba-T(0229) of the first README, 28.8 M parameters."""
    published = dict(_S2, dims=96, depths=(2, 2, 4, 2), drop_path_rate=0.2)
    return _create("vmamba_tiny_0229", pretrained, channel_first, published, **kwargs)


@register_model
def vmamba_tiny_0229flex(pretrained: bool = False, channel_first: bool = False, **kwargs: Any) -> VSSM:
    """VMamba-T(0229flex) of the first README, the network of 0229 in another training, 28.8 M parameters."""
    published = dict(_S2, dims=96, depths=(2, 2, 4, 2), drop_path_rate=0.2)
    return _create("vmamba_tiny_0229flex", pretrained, channel_first, published, **kwargs)


@register_model
def vmamba_tiny_m2(pretrained: bool = False, channel_first: bool = False, **kwargs: Any) -> VSSM:
    """VMamba-T with the state-space dual scan of mamba2, 25.3 M parameters; no weights were published."""
    published = dict(_MAMBA2, dims=96, depths=(2, 2, 4, 2), drop_path_rate=0.2)
    return _create("vmamba_tiny_m2", pretrained, channel_first, published, **kwargs)


@register_model
def vmamba_small_m2(pretrained: bool = False, channel_first: bool = False, **kwargs: Any) -> VSSM:
    """VMamba-S with the state-space dual scan of mamba2, 39.1 M parameters; no weights were published."""
    published = dict(_MAMBA2, dims=96, depths=(2, 2, 12, 2), drop_path_rate=0.3)
    return _create("vmamba_small_m2", pretrained, channel_first, published, **kwargs)


@register_model
def vmamba_base_m2(pretrained: bool = False, channel_first: bool = False, **kwargs: Any) -> VSSM:
    """VMamba-B with the state-space dual scan of mamba2, 67.5 M parameters; no weights were published."""
    published = dict(_MAMBA2, dims=128, depths=(2, 2, 12, 2), drop_path_rate=0.3)
    return _create("vmamba_base_m2", pretrained, channel_first, published, **kwargs)
