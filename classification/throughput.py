"""Images per second of a network's forward pass."""

from __future__ import annotations

import logging
import time

import torch
from torch import nn
from yacs.config import CfgNode

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
    for _ in range(_GPU_WARM_UP if device.type == "cuda" else 1):
        network(images)
    runs = _timed_gpu(network, images) if device.type == "cuda" else _timed_cpu(network, images)
    rate = batch * runs[0] / runs[1]
    logger.info(f"batch_size {batch} throughput {rate:.6g}")
    return rate


def _timed_gpu(network: nn.Module, images: torch.Tensor) -> tuple[int, float]:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(_GPU_RUNS):
        network(images)
    torch.cuda.synchronize()
    return _GPU_RUNS, time.perf_counter() - start


def _timed_cpu(network: nn.Module, images: torch.Tensor) -> tuple[int, float]:
    start, runs = time.perf_counter(), 0
    while runs < _CPU_RUNS or time.perf_counter() - start < _CPU_SECONDS:
        network(images)
        runs += 1
    return runs, time.perf_counter() - start
