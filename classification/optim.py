"""The optimizer: weight-decay groups, learning rate scaled with the batch."""

from __future__ import annotations

import timm.optim
import torch
from torch import nn
from yacs.config import CfgNode

from classification.world import World
from vmamba.errors import UserError, closest

# Parameters of the scan that should not shrink: decay rates, skips and time-step biases.
_SCAN_NO_DECAY = ("A_log", "A_logs", "Ds", "D", "dt_projs_bias")


def learning_rate_scale(config: CfgNode, world: World) -> float:
    """Return the factor on all configured learning rates: images per update over 512."""
    return config.DATA.BATCH_SIZE * world.size * config.TRAIN.ACCUMULATION_STEPS / 512.0


def parameter_groups(network: nn.Module, weight_decay: float, rule: str) -> list[dict]:
    """Return two optimizer groups, with and without weight decay, in the order of the network's parameters.

    ``published``: no decay for one-dimensional parameters, biases and what the network's `no_weight_decay` names. That
    decays A_logs and dt_projs_bias, which are two-dimensional. ``corrected`` exempts these too.
    """
    named = getattr(network, "no_weight_decay", None)
    skipped = set(named()) if callable(named) else set()
    if rule == "published":
        skipped = {name for name in skipped if name.rpartition(".")[2] not in _SCAN_NO_DECAY}
    decayed: list[tuple[str, nn.Parameter]] = []
    free: list[tuple[str, nn.Parameter]] = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim <= 1 or name.endswith(".bias") or name in skipped
        if rule == "corrected":
            exempt = exempt or name.rpartition(".")[2] in _SCAN_NO_DECAY
        (free if exempt else decayed).append((name, parameter))
    groups = [(decayed, weight_decay), (free, 0.0)]
    return [
        {"params": [p for _, p in members], "weight_decay": decay, "names": [name for name, _ in members]}
        for members, decay in groups
        if members
    ]


def build_optimizer(config: CfgNode, network: nn.Module, world: World) -> torch.optim.Optimizer:
    """Return AdamW, SGD with Nesterov momentum, or the timm optimizer called ``TRAIN.OPTIMIZER.NAME``."""
    train = config.TRAIN
    groups = parameter_groups(network, train.WEIGHT_DECAY, train.DECAY_GROUPS)
    for group in groups:
        del group["names"]
    rate = train.BASE_LR * learning_rate_scale(config, world)
    name = train.OPTIMIZER.NAME.lower()
    if name == "adamw":
        settings = {"eps": train.OPTIMIZER.EPS, "betas": tuple(train.OPTIMIZER.BETAS)}
        return torch.optim.AdamW(groups, lr=rate, **settings)
    if name == "sgd":
        momentum = train.OPTIMIZER.MOMENTUM
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)
    known = [str(other) for other in timm.optim.list_optimizers()]
    if name not in known:
        hint = closest(name, known)
        raise UserError(f"TRAIN.OPTIMIZER.NAME '{name}' is unknown.{hint} timm.optim.list_optimizers() lists them")
    return timm.optim.create_optimizer_v2(
        groups, opt=name, lr=rate, weight_decay=train.WEIGHT_DECAY, momentum=train.OPTIMIZER.MOMENTUM
    )
