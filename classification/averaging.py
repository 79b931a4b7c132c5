"""The exponential moving average of the weights (EMA)."""

from __future__ import annotations

import copy

import torch
from timm.utils import ModelEmaV3
from torch import nn
from yacs.config import CfgNode


class Average:
    """Averaged weights of `network`: average = decay * average + (1 - decay) * weights, after each update.

    ``EMA.WARMUP`` lets the decay grow as 1 - (1 + n)^(-2/3) over the updates n up to ``EMA.DECAY``, so that the average
    of a short run is not mostly its random start; the published trainer has a constant decay.
    """

    def __init__(self, config: CfgNode, network: nn.Module) -> None:
        device = torch.device("cpu") if config.EMA.FORCE_CPU else None
        # a shard and a buffer that is whole cannot stand in one list
        listed = config.TRAIN.PARALLEL != "fsdp2"
        warmup = config.EMA.WARMUP
        self._ema = ModelEmaV3(network, config.EMA.DECAY, use_warmup=warmup, device=device, foreach=listed)
        self._counts = config.EMA.WARMUP

    @property
    def network(self) -> nn.Module:
        """The network that holds the averaged weights."""
        return self._ema.module

    def update(self, network: nn.Module, updates: int) -> None:
        """Take in the weights after update number `updates`, counted from 1."""
        self._ema.update(network, step=updates if self._counts else None)

    def on(self, device: torch.device) -> nn.Module:
        """Return the averaged network on `device`, a copy when it lives elsewhere."""
        parameter = next(self.network.parameters())
        return self.network if parameter.device == device else copy.deepcopy(self.network).to(device)


def build_average(config: CfgNode, network: nn.Module) -> Average | None:
    """Return the average of `network`, or None when ``EMA.ENABLE`` is off."""
    return Average(config, network) if config.EMA.ENABLE else None
