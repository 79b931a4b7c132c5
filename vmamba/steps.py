"""Steps of a network that are timed, inference and training, and how they are timed: several in turn, on one clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import torch
from torch import Tensor, nn

Step = Callable[[], object]


def inference_step(model: nn.Module, images: Tensor) -> Step:
    """Return a step that runs `model`, put into evaluation, without gradients."""
    model.eval()

    def step() -> None:
        with torch.inference_mode():
            model(images)

    return step


def training_step(model: nn.Module, images: Tensor | Sequence[Tensor], optimizer: bool = True) -> Step:
    """Return a step of training: forward, cross entropy, backward, and AdamW unless `optimizer` is False.

    Several batches of images, of different sizes say, are taken in turn, one a step.
    """
    model.train()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches = cycle([images] if isinstance(images, Tensor) else images)

    def step() -> None:
        x = next(batches)
        logits = model(x).float()
        labels = torch.arange(len(x), device=x.device) % logits.shape[-1]
        torch.nn.functional.cross_entropy(logits, labels).backward()
        if optimizer:
            adamw.step()
        adamw.zero_grad()

    return step


def autocast(step: Step, device_type: str, dtype: torch.dtype) -> Step:
    """Return the step under automatic mixed precision; there is no loss scaling, which takes next to no time."""

    def wrapped() -> None:
        with torch.autocast(device_type, dtype):
            step()

    return wrapped


def seconds(step: Step, device: torch.device, count: int, now: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of one of `count` steps, a GPU's work done to its end, by the clock `now`."""
    synchronize(device)
    start = now()
    for _ in range(count):
        step()
    synchronize(device)
    return (now() - start) / count


def by_turns(
    steps: Mapping[str, Step],
    device: torch.device,
    turns: int,
    count: int,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of a step in each turn of each of several, {name: one figure a turn}; they alternate.

    A slow minute of the machine so falls on all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            times[name].append(seconds(step, device, count, now))
    return times


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
