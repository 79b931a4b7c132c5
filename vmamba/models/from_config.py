"""A model from the trainer's configuration: the published yacs keys on one side, constructor arguments on the other."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from vmamba.errors import UserError, closest
from vmamba.models.head_norm import norm_head

VSSM_ARGUMENTS = {
    "PATCH_SIZE": "patch_size",
    "IN_CHANS": "in_chans",
    "DEPTHS": "depths",
    "EMBED_DIM": "dims",
    "SSM_D_STATE": "ssm_d_state",
    "SSM_RATIO": "ssm_ratio",
    "SSM_DT_RANK": "ssm_dt_rank",
    "SSM_ACT_LAYER": "ssm_act_layer",
    "SSM_CONV": "ssm_conv",
    "SSM_CONV_BIAS": "ssm_conv_bias",
    "SSM_DROP_RATE": "ssm_drop_rate",
    "SSM_INIT": "ssm_init",
    "SSM_FORWARDTYPE": "forward_type",
    "MLP_RATIO": "mlp_ratio",
    "MLP_ACT_LAYER": "mlp_act_layer",
    "MLP_DROP_RATE": "mlp_drop_rate",
    "PATCH_NORM": "patch_norm",
    "NORM_LAYER": "norm_layer",
    "DOWNSAMPLE": "downsample_version",
    "PATCHEMBED": "patchembed_version",
    "POSEMBED": "posembed",
    "GMLP": "gmlp",
}
MODEL_TYPES = ("vssm", "timm")
# timm's modules of our own networks by name: those that are built for one image size, and those without classes.
_BUILT_FOR_A_SIZE = ("vim_variants", "fastvim_variants", "channelvim_variants", "mae_variants")
_AUTOENCODERS = ("mae_variants",)
_OURS = (*_BUILT_FOR_A_SIZE, "vssm_variants")


def model_from_config(config: Mapping[str, Any], **overrides: Any) -> nn.Module:
    """Return the network that a trainer configuration (yacs node or plain dict) describes.

    ``MODEL.HEAD_NORM`` puts a batch norm before the last layer.
    ``MODEL.TYPE vssm`` builds `vmamba.models.vssm.VSSM` from ``MODEL.VSSM``; ``MODEL.TYPE timm`` builds the timm model
    called ``MODEL.ARCH``, or ``MODEL.NAME`` where that is empty, ours among them, with ``MODEL.TIMM`` as further
    arguments. `overrides` are constructor arguments that win. Raises `UserError` for an unknown type, model or
    argument.
    """
    kind = config["MODEL"]["TYPE"]
    build = {"vssm": _vssm, "timm": _timm}.get(kind)
    if build is not None:
        network = build(config, overrides)
        return norm_head(network) if config["MODEL"].get("HEAD_NORM") else network
    hint = closest(kind, MODEL_TYPES)
    raise UserError(f"MODEL.TYPE '{kind}' is unknown; it is one of {', '.join(MODEL_TYPES)}.{hint}")


def is_autoencoder(config: Mapping[str, Any]) -> bool:
    """Return True where the configured network is one of our masked autoencoders, which have no classes."""
    import timm

    importlib.import_module("vmamba.models")
    model = config["MODEL"]
    name = model.get("ARCH") or model["NAME"]
    return model["TYPE"] == "timm" and timm.models.is_model_in_modules(name, _AUTOENCODERS)


def input_channels(config: Mapping[str, Any]) -> int:
    """Return the number of image channels that the configured model reads."""
    model = config["MODEL"]
    if model["TYPE"] == "timm":
        return int(model.get("TIMM", {}).get("in_chans", 3))
    return int(model["VSSM"]["IN_CHANS"])


def vssm_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments of `VSSM` that a configuration states."""
    model = config["MODEL"]
    arguments = {argument: model["VSSM"][key] for key, argument in VSSM_ARGUMENTS.items() if key in model["VSSM"]}
    arguments["num_classes"] = model["NUM_CLASSES"]
    arguments["drop_rate"] = model.get("DROP_RATE", 0.0)
    arguments["drop_path_rate"] = model["DROP_PATH_RATE"]
    arguments["use_checkpoint"] = bool(config.get("TRAIN", {}).get("USE_CHECKPOINT", False))
    arguments["imgsize"] = config["DATA"]["IMG_SIZE"]
    return arguments


def _vssm(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> nn.Module:
    from vmamba.models.vssm import VSSM

    arguments = {**vssm_arguments(config), **overrides}
    return _construct("MODEL.VSSM", VSSM, **arguments)


def _timm(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> nn.Module:
    import timm

    importlib.import_module("vmamba.models")
    model = config["MODEL"]
    key = "MODEL.ARCH" if model.get("ARCH") else "MODEL.NAME"
    name = model.get("ARCH") or model["NAME"]
    if not timm.is_model(name):
        known = closest(name, timm.list_models())
        raise UserError(f"{key} '{name}' is not a model that timm knows; timm.list_models() lists them.{known}")
    arguments: dict[str, Any] = {"num_classes": model["NUM_CLASSES"]}
    for option, argument in (("DROP_RATE", "drop_rate"), ("DROP_PATH_RATE", "drop_path_rate")):
        if model.get(option):
            arguments[argument] = model[option]
    # a rate of 0 is not told to other networks of timm, some of which do not know the argument
    if timm.models.is_model_in_modules(name, _OURS) and "DROP_PATH_RATE" in model:
        arguments["drop_path_rate"] = model["DROP_PATH_RATE"]
    if timm.models.is_model_in_modules(name, _BUILT_FOR_A_SIZE):
        arguments["img_size"] = config["DATA"]["IMG_SIZE"]
    if is_autoencoder(config):
        arguments = {"img_size": config["DATA"]["IMG_SIZE"]}
    arguments |= {**model.get("TIMM", {}), **overrides}
    network: Any = _construct("MODEL.TIMM", timm.create_model, name, **arguments)
    if config.get("TRAIN", {}).get("USE_CHECKPOINT", False):
        network.set_grad_checkpointing(True)
    return network


def _construct(key: str, factory, *positional: Any, **arguments: Any) -> nn.Module:
    """Call `factory`; an argument that it refuses becomes a `UserError` that names the configuration key."""
    try:
        return factory(*positional, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {error}") from error
