"""The parts of a run, put together from the configuration."""

from __future__ import annotations

import inspect
import logging

import torch
from torch import nn
from yacs.config import CfgNode

from classification.averaging import build_average
from classification.data import Data
from classification.decay import DecaySchedule
from classification.distillation import build_distillation
from classification.drop_path import DropPathSchedule
from classification.finetuning import DoNotFit, fill
from classification.freezing import freeze, rest_frozen
from classification.mixing import Doubled, build_criterion, build_mixing, mixing_until
from classification.optim import build_optimizer, images_per_update, learning_rate_scale
from classification.parallel import parallelise, shard_optimizer_state, start_alike, synchronised, without_effect
from classification.precision import Precision
from classification.progress import updates_of
from classification.schedule import build_schedule
from classification.train import Trainer
from classification.world import World
from vmamba.counting import count_model
from vmamba.errors import UserError, closest
from vmamba.models.from_config import is_autoencoder, model_from_config
from vmamba.preprocess import image_size
from vmamba.weights import load_checkpoint

_MOVES_TOKEN = "if_random_cls_token_position"


def build_network(config: CfgNode, world: World, logger: logging.Logger) -> nn.Module:
    """Return the configured network on this process's device, and log its size."""
    check_classes(config)
    network = model_from_config(config)
    freeze(config, network)
    logger.info(f"Creating model:{config.MODEL.TYPE}/{config.MODEL.NAME}")
    logger.debug(str(network))
    logger.info(f"number of params: {sum(p.numel() for p in network.parameters() if p.requires_grad)}")
    if world.rank == 0:
        logger.info(f"number of GFLOPs: {_gflops(config, network)}")
    if config.TRAIN.CHANNELS_LAST:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network.register_forward_pre_hook(_channels_last)
    return synchronised(config, network.to(world.device), world)


def check_classes(config: CfgNode) -> None:
    """Raise `UserError` where ``MODEL.TIMM`` asks for a head of another number of classes than the data has."""
    stated, classes = config.MODEL.TIMM.get("num_classes"), config.MODEL.NUM_CLASSES
    if config.MODEL.TYPE == "timm" and stated not in (None, classes) and not is_autoencoder(config):
        raise UserError(
            f"MODEL.TIMM.num_classes {stated}: there are {classes} classes (MODEL.NUM_CLASSES, which training takes "
            "from the data); leave it out"
        )


def _channels_last(network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    images, *rest = inputs
    return images.contiguous(memory_format=torch.channels_last), *rest


def _gflops(config: CfgNode, network: nn.Module) -> str:
    """Return the billions of multiply-accumulates for one image, or why they cannot be told."""
    try:
        return f"{count_model(network, image_size(config)).gflops:.6f}"
    except UserError as error:
        return f"unknown ({error})"


def build_trainer(config: CfgNode, network: nn.Module, data: Data, world: World, logger: logging.Logger) -> Trainer:
    """Return the `Trainer` of a run: optimizer, schedule, loss and average around `network`."""
    check_forward_arguments(config, network)
    for line in (*without_effect(config, world), *forward_without_effect(config, network)):
        logger.warning(line)
    distillation = build_distillation(config, network, world)
    start_alike(network, world)
    average = build_average(config, network)
    model = parallelise(config, network, average, world)
    if config.TRAIN.COMPILE:
        compile_in_place(config, network)
    optimizer = build_optimizer(config, network, world)
    shard_optimizer_state(optimizer, network)
    scale = learning_rate_scale(config, world)
    logger.info(
        f"learning rate {config.TRAIN.BASE_LR * scale:.3g} ({config.TRAIN.BASE_LR:g} x {scale:g}), "
        f"{images_per_update(config, world)} images per update"
    )
    mixing = build_mixing(config)
    per_epoch = updates_per_epoch(config, data)
    return Trainer(
        config=config,
        world=world,
        network=network,
        model=model,
        optimizer=optimizer,
        schedule=build_schedule(config, optimizer, per_epoch, scale),
        criterion=build_criterion(config, mixing).to(world.device),
        mixing=Doubled(mixing) if config.TRAIN.COSUB else mixing,
        precision=Precision(config, world.device),
        average=average,
        logger=logger,
        distillation=distillation,
        each_epoch=[
            DropPathSchedule(config, network),
            mixing_until(config, mixing),
            lambda epoch: rest_frozen(network),
        ],
        each_update=[DecaySchedule(config, optimizer, config.TRAIN.EPOCHS * per_epoch)],
    )


def check_forward_arguments(config: CfgNode, network: nn.Module) -> None:
    """Raise `UserError` where ``TRAIN.FORWARD`` names an argument that the network's forward does not take."""
    known = list(inspect.signature(network.forward).parameters)[1:]
    for name in config.TRAIN.FORWARD:
        if name not in known:
            kind = type(network).__name__
            raise UserError(f"TRAIN.FORWARD: {kind} takes no {name!r} in forward.{closest(name, known)}")


def forward_without_effect(config: CfgNode, network: nn.Module) -> list[str]:
    """Return one line for each argument of ``TRAIN.FORWARD`` that this network takes and does not follow."""
    kind = getattr(network, "class_token", "head")
    if config.TRAIN.FORWARD.get(_MOVES_TOKEN) and kind != "head":
        reason = f"the network's class token is '{kind}', and only a single one at the head moves"
        return [f"TRAIN.FORWARD.{_MOVES_TOKEN} has no effect: {reason}"]
    return []


def compile_in_place(config: CfgNode, network: nn.Module) -> None:
    """Compile `network` with the backend ``TRAIN.COMPILE``; its keys and its copies stay plain."""
    known = torch.compiler.list_backends(exclude_tags=())
    if config.TRAIN.COMPILE not in known:
        hint = closest(config.TRAIN.COMPILE, known)
        raise UserError(f"TRAIN.COMPILE '{config.TRAIN.COMPILE}' is unknown; torch has {', '.join(known)}.{hint}")
    network.compile(backend=config.TRAIN.COMPILE)


def updates_per_epoch(config: CfgNode, data: Data) -> int:
    """Return how often the weights move in one epoch."""
    return updates_of(len(data.train), config.TRAIN.ACCUMULATION_STEPS) if data.train is not None else 1


def load_pretrained(config: CfgNode, trainer: Trainer) -> None:
    """Fill the network, and the average, with the weights of ``MODEL.PRETRAINED``; strictly, see `fill`."""
    path = config.MODEL.PRETRAINED
    payload = load_checkpoint(path)
    wanted = config.MODEL.PRETRAINED_ENTRY
    entry = None if wanted == "auto" else wanted
    head = config.MODEL.ALLOW_HEAD_MISMATCH
    try:
        report = fill(trainer.network, payload, path, entry=entry, allow_head_mismatch=head)
        if config.EVAL_MODE and report.head_dropped:
            raise UserError(
                f"{path} has no head that fits, and --eval would judge one that has learnt nothing; train it first, "
                "without --eval"
            )
        if trainer.average is not None:
            fill(trainer.average.network, payload, path, entry=entry, prefer_ema=True, allow_head_mismatch=head)
    except DoNotFit as error:
        trainer.logger.error(error.table)
        raise
    trainer.logger.info(f"weights of {path}: {report.summary()}")
