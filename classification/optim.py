"""The optimizer: weight-decay groups, layer-wise rates, learning rate scaled with the batch."""

from __future__ import annotations

import math
from typing import Any

import timm.optim
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from yacs.config import CfgNode

from classification.world import World
from vmamba.errors import UserError, closest

DECAY_GROUPS = ("published", "corrected", "shape", "all")
# Parameters of the scan that should not shrink: decay rates, skips and time-step biases.
_SCAN_NO_DECAY = ("A_log", "A_logs", "Ds", "D", "dt_projs_bias")


def learning_rate_scale(config: CfgNode, world: World) -> float:
    """Return the factor on all configured rates: images per update over ``LR_BASE_BATCH``, or 1 if that is 0."""
    base = config.TRAIN.LR_BASE_BATCH
    return images_per_update(config, world) / base if base else 1.0


def images_per_update(config: CfgNode, world: World) -> int:
    """Return how many images all processes together see between two updates."""
    return config.DATA.BATCH_SIZE * world.size * config.TRAIN.ACCUMULATION_STEPS


def undecayed_parameters(network: nn.Module, rule: str) -> set[str]:
    """Return the names of the parameters that take no weight decay.

    ``published``: one-dimensional parameters, biases and what the network's `no_weight_decay` names. That decays A_logs
    and dt_projs_bias, which are two-dimensional. ``corrected`` exempts these too. ``shape``: one-dimensional parameters
    and biases alone, as FastVim was trained. ``all``: none, as its autoencoders were.
    """
    if rule == "all":
        return set()
    named = getattr(network, "no_weight_decay", None)
    skipped = set(named()) if callable(named) and rule != "shape" else set()
    if rule in ("published", "shape"):
        skipped = {name for name in skipped if name.rpartition(".")[2] not in _SCAN_NO_DECAY}
    else:
        skipped |= {name for name, _ in network.named_parameters() if name.rpartition(".")[2] in _SCAN_NO_DECAY}
    return {n for n, p in network.named_parameters() if p.ndim <= 1 or n.endswith(".bias") or n in skipped}


def parameter_groups(
    network: nn.Module,
    weight_decay: float,
    rule: str,
    layer_decay: float = 1.0,
    least: float = 0.0,
    together: int = 1,
) -> list[dict]:
    """Return the optimizer groups of what is trained, with and without weight decay, each in the network's order.

    `rule` is that of `undecayed_parameters`. With a `layer_decay` below 1 there are such groups for each layer, with
    the ``lr_scale`` layer_decay^ceil(layers above it / `together`), at least `least`; the network's `group_matcher`
    tells the layers.
    """
    exempt = undecayed_parameters(network, rule)
    if layer_decay != 1.0:
        # timm tells the layers by their scale alone, which at a rate of 2 is 2 to the number of layers above
        groups = param_groups_layer_decay(
            network, weight_decay, no_weight_decay_list=exempt, weight_decay_exclude_1d=False, layer_decay=2.0
        )
        for group in groups:
            above = round(math.log2(group["lr_scale"]))
            group["lr_scale"] = max(layer_decay ** math.ceil(above / together), least)
        return groups
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if name not in exempt]
    free = [parameter for name, parameter in trained if name in exempt]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(config: CfgNode, network: nn.Module, world: World) -> torch.optim.Optimizer:
    """Return AdamW, SGD with Nesterov momentum, or the timm optimizer called ``TRAIN.OPTIMIZER.NAME``.

    ``TRAIN.OPTIMIZER.ARGS`` are further arguments of its constructor. Raises `UserError` for an unknown name or
    argument, and when nothing is left to train.
    """
    train, options = config.TRAIN, config.TRAIN.OPTIMIZER
    layers = train.LAYER_DECAY, train.LAYER_DECAY_MIN_SCALE, train.LAYER_DECAY_BLOCKS
    groups = parameter_groups(network, train.WEIGHT_DECAY, train.DECAY_GROUPS, *layers)
    if not groups:
        raise UserError("TRAIN.FREEZE leaves no parameter to train; name fewer of them")
    common: dict[str, Any] = {"lr": train.BASE_LR * learning_rate_scale(config, world), **options.ARGS}
    name, momentum = options.NAME.lower(), options.MOMENTUM
    own: dict[str, Any]
    try:
        if name == "adamw":
            own = {"eps": options.EPS, "betas": tuple(options.BETAS), "fused": options.FUSED or None}
            return torch.optim.AdamW(groups, **{**own, **common})
        if name == "sgd":
            own = {"momentum": momentum, "nesterov": momentum > 0, "fused": options.FUSED or None}
            return torch.optim.SGD(groups, **{**own, **common})
        known = [str(other) for other in timm.optim.list_optimizers()]
        if name not in known:
            hint = closest(name, known)
            raise UserError(f"TRAIN.OPTIMIZER.NAME '{name}' is unknown.{hint} timm.optim.list_optimizers() lists them")
        own = {"weight_decay": train.WEIGHT_DECAY, "momentum": momentum}
        return timm.optim.create_optimizer_v2(groups, opt=name, **{**own, **common})
    except TypeError as error:
        raise UserError(f"TRAIN.OPTIMIZER.ARGS {dict(options.ARGS)} do not fit {name}: {error}") from None
