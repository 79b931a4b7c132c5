"""One training epoch in small steps: forward and backward, agree that all is finite, update."""

from __future__ import annotations

import datetime
import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from yacs.config import CfgNode

from classification.averaging import Average
from classification.clipping import clip_gradients
from classification.data import Batches
from classification.distillation import Distillation
from classification.meters import Clock, Meter, memory_megabytes
from classification.mixing import AnySizeMixup
from classification.parallel import without_synchronising
from classification.precision import Precision
from classification.progress import EpochSoFar
from classification.schedule import present_rate
from classification.stopping import Stopping
from classification.world import World


class TrainingStopped(RuntimeError):
    """Training cannot go on; one line that says where and why."""


@dataclass
class Trainer:
    """Everything an update touches. `model` is `network`, wrapped for several processes where there are some."""

    config: CfgNode
    world: World
    network: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Scheduler
    criterion: nn.Module
    mixing: AnySizeMixup | None
    precision: Precision
    average: Average | None
    logger: logging.Logger
    updates: int = 0
    nonfinite_in_a_row: int = 0
    so_far: EpochSoFar = field(default_factory=EpochSoFar)
    stopping: Stopping = field(default_factory=Stopping)
    distillation: Distillation | None = None
    each_epoch: list[Callable[[int], None]] = field(default_factory=list)
    each_update: list[Callable[[int], None]] = field(default_factory=list)


@dataclass(frozen=True)
class EpochSummary:
    """What one epoch leaves for the record."""

    loss: float
    grad_norm: float
    lr: float
    seconds: float
    images_per_second: float


def window_of(step: int, steps: int, accumulation: int) -> tuple[int, bool]:
    """Return how many steps share the update that `step` belongs to, and whether `step` is the last of them.

    The last window of an epoch may be shorter; its gradient is the mean over its own steps.
    """
    start = step - step % accumulation
    size = min(accumulation, steps - start)
    return size, step == start + size - 1


def train_one_epoch(
    trainer: Trainer,
    batches: Batches,
    epoch: int,
    on_step: Callable[[str], None],
    on_update: Callable[[], None] = lambda: None,
) -> EpochSummary:
    """Train what `trainer.so_far` leaves of an epoch and return the `EpochSummary` of all of it.

    After each step `on_step` gets a text for the progress bar; after each update the trainer is in a state to be saved,
    and `on_update` is called. Raises `Interrupted` there when the processes have agreed to end.
    """
    config, steps, so_far = trainer.config, len(batches), trainer.so_far
    batches.sampler.set_epoch(epoch, so_far.step)
    trainer.model.train()
    for prepare in trainer.each_epoch:
        prepare(epoch)
    trainer.optimizer.zero_grad()
    times, data_times, model_times = (Meter() for _ in range(3))
    clock, window_clock = Clock(), Clock()
    finite = torch.ones((), device=trainer.world.device)
    scale = trainer.precision.scale

    for step, (images, labels) in enumerate(batches, start=so_far.step):
        data_times.update(clock.lap())
        size, closes = window_of(step, steps, config.TRAIN.ACCUMULATION_STEPS)
        loss = forward_backward(trainer, images, labels, size, synchronise=closes)
        finite = finite * torch.isfinite(loss)
        so_far.seen += len(labels)
        # read before the update is queued on a GPU: its check waits for this much anyway, and then for no more
        value = loss.item()
        if closes:
            so_far.lr, scale = present_rate(trainer.optimizer), trainer.precision.scale
            norm = update(trainer, finite, epoch, step)
            if norm is not None:
                so_far.norms.update(norm)
            finite = torch.ones_like(finite)
        if math.isfinite(value):
            so_far.losses.update(value, len(labels))
        so_far.step = step + 1
        model_times.update(clock.lap())
        times.update(data_times.val + model_times.val)
        if step % config.PRINT_FREQ == 0:
            left = datetime.timedelta(seconds=int(times.avg * (steps - step)))
            decay = trainer.optimizer.param_groups[0]["weight_decay"]
            trainer.logger.info(
                f"Train: [{epoch}/{config.TRAIN.EPOCHS}][{step}/{steps}]\t"
                f"eta {left} lr {so_far.lr:.6f}\t wd {decay:.4f}\t"
                f"time {times.text()}\tdata time {data_times.text()}\tmodel time {model_times.text()}\t"
                f"loss {so_far.losses.text()}\tgrad_norm {so_far.norms.text()}\t"
                f"loss_scale {scale:.4f} ({scale:.4f})\t"
                f"mem {memory_megabytes(trainer.world.device):.0f}MB"
            )
        rate = len(labels) * trainer.world.size / max(times.avg, 1e-9)
        on_step(f"epoch {epoch} loss {so_far.losses.avg:.3f} {rate:.0f} img/s")
        if closes:
            so_far.seconds += window_clock.lap()
            on_update()
            window_clock.lap()  # a save is no training time
            trainer.stopping.obey()
    trainer.logger.info(f"EPOCH {epoch} training takes {datetime.timedelta(seconds=int(so_far.seconds))}")
    rate = so_far.seen * trainer.world.size / max(so_far.seconds, 1e-9)
    return EpochSummary(so_far.losses.avg, so_far.norms.avg, so_far.lr, so_far.seconds, rate)


def forward_backward(trainer: Trainer, images: Tensor, labels: Tensor, window: int, synchronise: bool) -> Tensor:
    """Add the gradient of one batch, a share 1/`window` of its update, and return the detached loss of the batch."""
    images, labels = (t.to(trainer.world.device, non_blocking=True) for t in (images, labels))
    targets = labels
    if trainer.mixing is not None:
        images, targets = trainer.mixing(images, labels)
    with without_synchronising(trainer.model) if not synchronise else nullcontext():
        with trainer.precision.autocast():
            logits = trainer.model(images)
        if trainer.distillation is None:
            loss = trainer.criterion(logits.float(), targets)
        else:
            with trainer.precision.autocast():
                taught = trainer.distillation.guess(images)
            loss = trainer.distillation(trainer.criterion, taught, logits, targets)
        trainer.precision.scaler.scale(loss / window).backward()
    return loss.detach()


def update(trainer: Trainer, finite: Tensor, epoch: int, step: int) -> float | None:
    """Move the weights by the accumulated gradient and return its norm; None when all processes agree to skip.

    A loss that is not finite on one process skips the update on all; so does a gradient that is not finite, unless
    float16 scaling handles it. Nothing but the schedule moves then. Raises `TrainingStopped` after too many in a row.
    The one question to all processes also carries the signals that ask for an end, see `Stopping`.
    """
    scaler, train = trainer.precision.scaler, trainer.config.TRAIN
    for prepare in trainer.each_update:
        prepare(trainer.updates)
    scaler.unscale_(trainer.optimizer)
    norm = clip_gradients(trainer.network, train.CLIP_GRAD, train.CLIP_MODE)
    bad = finite == 0
    if not scaler.is_enabled():
        bad = bad | ~torch.isfinite(norm)
    requested = torch.full_like(norm, trainer.stopping.requested)
    highest_bad, highest_signal = trainer.world.highest(torch.stack([bad.to(norm.dtype), requested]))
    trainer.stopping.agreed = int(highest_signal)
    skipped, length = bool(highest_bad), float(norm)
    if skipped:
        _count_nonfinite(trainer, epoch, step)
        if scaler.is_enabled():
            scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
    else:
        before = trainer.precision.scale
        scaler.step(trainer.optimizer)
        scaler.update()
        skipped = trainer.precision.scale < before
        if skipped and trainer.precision.scale < 1:
            _count_nonfinite(trainer, epoch, step)
        elif not skipped:
            trainer.nonfinite_in_a_row = 0
    trainer.optimizer.zero_grad()
    trainer.updates += 1
    if trainer.average is not None and not skipped:
        trainer.average.update(trainer.network, trainer.updates)
    trainer.schedule.step_update(trainer.updates)
    return None if skipped else length


def _count_nonfinite(trainer: Trainer, epoch: int, step: int) -> None:
    trainer.nonfinite_in_a_row += 1
    limit = trainer.config.TRAIN.MAX_NONFINITE
    if trainer.nonfinite_in_a_row >= limit:
        raise TrainingStopped(
            f"the loss or gradient was not finite {limit} times in a row (epoch {epoch}, step {step}); the last "
            "checkpoint is intact: lower TRAIN.BASE_LR, or use --amp-dtype bfloat16 or --disable_amp"
        )
    trainer.logger.warning(
        f"epoch {epoch} step {step}: the loss or gradient is not finite, this update is skipped "
        f"({trainer.nonfinite_in_a_row} in a row, {limit} stop the run)"
    )
