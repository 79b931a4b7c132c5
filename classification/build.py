"""The parts of a run, put together from the configuration."""

from __future__ import annotations

import logging

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from yacs.config import CfgNode

from classification.averaging import build_average
from classification.data import Data
from classification.mixing import build_criterion, build_mixing
from classification.optim import build_optimizer, learning_rate_scale
from classification.precision import Precision
from classification.schedule import build_schedule
from classification.train import Trainer
from classification.world import World
from vmamba.counting import count_model
from vmamba.errors import UserError
from vmamba.models.from_config import model_from_config
from vmamba.preprocess import image_size
from vmamba.weights import load_checkpoint, load_weights
from vmamba.weights.loading import WeightsDoNotFit


def build_network(config: CfgNode, world: World, logger: logging.Logger) -> nn.Module:
    """Return the configured network on this process's device, and log its size."""
    network = model_from_config(config)
    logger.info(f"Creating model:{config.MODEL.TYPE}/{config.MODEL.NAME}")
    logger.debug(str(network))
    logger.info(f"number of params: {sum(p.numel() for p in network.parameters() if p.requires_grad)}")
    if world.rank == 0:
        logger.info(f"number of GFLOPs: {_gflops(config, network)}")
    return network.to(world.device)


def _gflops(config: CfgNode, network: nn.Module) -> str:
    """Return the billions of multiply-accumulates for one image, or why they cannot be told."""
    try:
        return f"{count_model(network, image_size(config)).gflops:.6f}"
    except UserError as error:
        return f"unknown ({error})"


def build_trainer(config: CfgNode, network: nn.Module, data: Data, world: World, logger: logging.Logger) -> Trainer:
    """Return the `Trainer` of a run: optimizer, schedule, loss and average around `network`."""
    model: nn.Module = network
    if world.size > 1:
        ids = [world.device.index] if world.device.type == "cuda" else None
        model = DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False)
    optimizer = build_optimizer(config, network, world)
    scale = learning_rate_scale(config, world)
    logger.info(f"learning rate {config.TRAIN.BASE_LR * scale:.3g} ({config.TRAIN.BASE_LR:g} x batch per update / 512)")
    mixing = build_mixing(config)
    return Trainer(
        config=config,
        world=world,
        network=network,
        model=model,
        optimizer=optimizer,
        schedule=build_schedule(config, optimizer, updates_per_epoch(config, data), scale),
        criterion=build_criterion(config, mixing),
        mixing=mixing,
        precision=Precision(config, world.device),
        average=build_average(config, network),
        logger=logger,
    )


def updates_per_epoch(config: CfgNode, data: Data) -> int:
    """Return how often the weights move in one epoch."""
    return -(-len(data.train) // config.TRAIN.ACCUMULATION_STEPS) if data.train is not None else 1


def load_pretrained(config: CfgNode, trainer: Trainer) -> None:
    """Fill the network, and the average, with the weights of ``MODEL.PRETRAINED``; strictly, see `load_weights`."""
    path = config.MODEL.PRETRAINED
    payload = load_checkpoint(path)
    wanted = config.MODEL.PRETRAINED_ENTRY
    entry = None if wanted == "auto" else wanted
    for network, prefer_ema in _networks(trainer):
        try:
            report = load_weights(
                network,
                payload,
                entry=entry,
                prefer_ema=prefer_ema,
                allow_head_mismatch=config.MODEL.ALLOW_HEAD_MISMATCH,
                quiet=True,
            )
        except WeightsDoNotFit as error:
            trainer.logger.error(f"{path} does not fit the model:\n{error.report.table()}")
            raise UserError(str(error).replace("the given dict", path)) from None
        if not prefer_ema:
            trainer.logger.info(f"weights of {path}: {report.summary()}")


def _networks(trainer: Trainer) -> list[tuple[nn.Module, bool]]:
    networks = [(trainer.network, False)]
    if trainer.average is not None:
        networks.append((trainer.average.network, True))
    return networks
