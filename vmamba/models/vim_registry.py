"""How the models of the Vim family are built by name: timm's configuration, weights, and the published long names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from ..weights.adapting import weights_for_timm
from ..weights.fetching import fetch_pretrained
from ..weights.loading import load_weights
from ..weights.released import released_classifier

# The published long names, and the name here of the model of each.
LONG_NAMES: dict[str, str] = {}


def default_cfgs(names: tuple[str, ...], license: str, **kwargs: Any) -> Mapping[str, Any]:
    """timm's pretrained configurations of models by name, with the addresses of the released weights."""

    def cfg(name: str) -> dict[str, Any]:
        released = released_classifier(name)
        return {
            "url": released.url if released else "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": None,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": license,
            "custom_load": True,
            **kwargs,
        }

    return generate_default_cfgs({f"{name}.in1k": cfg(name) for name in names})


def filtered(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """The weights of a published file as the model's; see `vssm_variants.checkpoint_filter_fn`."""
    return weights_for_timm(model, state_dict)


def create(kind: Callable[..., nn.Module], variant: str, pretrained: bool, published: dict[str, Any], **kwargs: Any):
    """The variant with its published arguments, those of the caller taking precedence.

    `channels` may stand for timm's `in_chans`. `pretrained_checkpoint_path`, which some published names take, is a file
    whose weights are loaded, the head left fresh if it differs.
    """
    checkpoint = kwargs.pop("pretrained_checkpoint_path", None)
    if "channels" in kwargs:
        kwargs["in_chans"] = kwargs.pop("channels")
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if pretrained and not kwargs.get("pretrained_cfg") and not ({"file", "url", "state_dict"} & set(overlay)):
        kwargs["pretrained_cfg_overlay"] = {**overlay, "file": str(fetch_pretrained(variant))}
    arguments = {**published, **kwargs}
    depth = arguments["depth"]
    quarters = tuple(dict.fromkeys(max(depth * i // 4 - 1, 0) for i in range(1, 5)))
    out_indices = arguments.pop("out_indices", quarters)
    model: Any = build_model_with_cfg(
        kind,
        variant,
        pretrained,
        pretrained_filter_fn=filtered,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **arguments,
    )
    if checkpoint:
        # What `features_only` wraps has lost the blocks after the last feature, the final norm and the head.
        wrapped = isinstance(model, FeatureGetterNet)
        network = model.model if wrapped else model
        lost = [f"layers.{i}.*" for i in range(len(network.layers), depth)] + ["norm_f.*", "head.*"] if wrapped else []
        load_weights(network, checkpoint, allow_head_mismatch=True, allow_unexpected=lost)
    return model


def register_alias(name: str, entry: Callable[..., nn.Module]) -> None:
    """Register a published long name, which builds the model of `entry`, with timm."""

    def alias(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return entry(pretrained, **kwargs)

    LONG_NAMES[name] = entry.__name__
    alias.__name__ = alias.__qualname__ = name
    alias.__module__ = entry.__module__
    alias.__doc__ = f"`{entry.__name__}` under its published name."
    setattr(sys.modules[entry.__module__], name, register_model(alias))
