"""Images per second: of a network's forward pass, and of whole training steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import nn
from yacs.config import CfgNode

from classification.clipping import clip_gradients
from classification.meters import memory_megabytes
from classification.mixing import build_criterion
from classification.optim import build_optimizer
from classification.precision import Precision
from classification.world import World
from vmamba.models.from_config import input_channels
from vmamba.preprocess import image_size

_GPU_WARM_UP, _GPU_RUNS = 50, 30
_CPU_SECONDS, _CPU_RUNS = 5.0, 3


@torch.inference_mode()
def measure_throughput(network: nn.Module, config: CfgNode, device: torch.device, logger: logging.Logger) -> float:
    """Log and return images per second, float32, random images of the configured size and batch.

    On a GPU 30 timed runs after 50 of warm-up, as published; on a CPU at least 3 runs and 5 seconds after one.
    """
    network.eval()
    batch = config.DATA.BATCH_SIZE
    images = torch.randn(batch, input_channels(config), *image_size(config), device=device)
    rate = batch * _runs_per_second(lambda: network(images), device)
    logger.info(f"batch_size {batch} throughput {rate:.6g}")
    return rate


def measure_training_cost(network: nn.Module, config: CfgNode, device: torch.device, logger: logging.Logger) -> float:
    """Log and return images per second of training steps, and log their peak memory; random images, as above.

    A step is what the run's own is in one process: forward and backward in its precision, clipping, optimizer.
    """
    network.train()
    batch, precision = config.DATA.BATCH_SIZE, Precision(config, device)
    optimizer = build_optimizer(config, network, World(device=device))
    criterion = build_criterion(config, None).to(device)
    images = torch.randn(batch, input_channels(config), *image_size(config), device=device)
    labels = torch.randint(config.MODEL.NUM_CLASSES, (batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        with precision.autocast():
            logits = network(images)
        precision.scaler.scale(criterion(logits.float(), labels)).backward()
        precision.scaler.unscale_(optimizer)
        clip_gradients(network, config.TRAIN.CLIP_GRAD, config.TRAIN.CLIP_MODE)
        precision.scaler.step(optimizer)
        precision.scaler.update()

    rate = batch * _runs_per_second(step, device)
    logger.info(f"batch_size {batch} {precision} training {rate:.6g} images/s {memory_megabytes(device):.0f}MB")
    return rate


def _runs_per_second(call: Callable[[], object], device: torch.device) -> float:
    on_gpu = device.type == "cuda"
    for _ in range(_GPU_WARM_UP if on_gpu else 1):
        call()
    if on_gpu:
        torch.cuda.synchronize()
    start, runs = time.perf_counter(), 0
    while runs < _GPU_RUNS if on_gpu else runs < _CPU_RUNS or time.perf_counter() - start < _CPU_SECONDS:
        call()
        runs += 1
    if on_gpu:
        torch.cuda.synchronize()
    return runs / (time.perf_counter() - start)
