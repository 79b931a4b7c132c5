"""Parts of a network that do not learn: chosen by name, or all but the head."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn
from yacs.config import CfgNode

from vmamba.errors import UserError, closest


def freeze(config: CfgNode, network: nn.Module) -> None:
    """Stop the gradient of what ``TRAIN.FREEZE`` names and, with ``TRAIN.LINEAR_PROBE``, of all but the head.

    A name is a parameter's, a module's, or a pattern such as ``layers.0.*``. Raises `UserError` where one fits nothing.
    """
    names = dict(network.named_parameters())
    for pattern in config.TRAIN.FREEZE:
        found = [name for name in names if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
        if not found:
            hint = closest(pattern, [*names, *(name for name, _ in network.named_modules())])
            raise UserError(f"TRAIN.FREEZE '{pattern}' is no parameter or module of the network.{hint}")
        for name in found:
            names[name].requires_grad_(False)
    if config.TRAIN.LINEAR_PROBE:
        find = getattr(network, "get_classifier", None)
        head = {id(parameter) for parameter in find().parameters()} if callable(find) else set()
        if not head:
            raise UserError(f"TRAIN.LINEAR_PROBE: {type(network).__name__} has no classifier head to train")
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in head)


def rest_frozen(module: nn.Module) -> None:
    """Put every part whose parameters are all frozen into evaluation: its statistics stay, and it drops no path."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        rest_frozen(child)
