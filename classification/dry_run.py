"""A rehearsal: everything is built, one update is made, a checkpoint goes to the disk and back, the plan is printed."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from yacs.config import CfgNode

from classification.checkpoint import LAST, Checkpoints, resume
from classification.data import Data
from classification.meters import Clock, memory_megabytes
from classification.optim import images_per_update
from classification.parallel import own_part
from classification.progress import Progress
from classification.schedule import present_rate
from classification.train import Trainer, forward_backward, update
from classification.world import World
from vmamba.counting import count_model
from vmamba.errors import UserError
from vmamba.models.from_config import model_from_config
from vmamba.preprocess import image_size

_EPOCHS_SHOWN = 8


@contextmanager
def scratch_folder(config: CfgNode, world: World) -> Iterator[Path]:
    """Yield a folder on the disk of ``OUTPUT`` that is gone afterwards: a rehearsal leaves nothing behind."""
    root = Path(config.OUTPUT or "output")
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    folder = Path(world.from_first(lambda: _scratch(existing)))
    try:
        yield folder
    finally:
        if world.first:
            shutil.rmtree(folder, ignore_errors=True)


def _scratch(parent: Path) -> str:
    try:
        return tempfile.mkdtemp(prefix=".dry-run-", dir=parent)
    except OSError as error:
        raise UserError(f"cannot write to {parent}: {error.strerror}; choose another --output") from None


def dry_run(trainer: Trainer, data: Data, per_epoch: int, folder: Path, console: Console) -> None:
    """Rehearse a run in `folder`; the first process prints the plan. Raises what the run itself would."""
    assert data.train is not None
    rates = planned_rates(trainer, per_epoch)
    loading, seconds = _one_update(trainer, data)
    size = _round_trip(trainer, data, folder)
    if trainer.world.first:
        console.print(_plan(trainer, data, per_epoch, rates, loading, seconds, size))


def planned_rates(trainer: Trainer, per_epoch: int) -> list[tuple[int, float]]:
    """Return (epoch, learning rate of its first update) for some epochs, the first and the last among them.

    A schedule that waits for scores shows the rate of a run whose score never stops rising.
    """
    config = trainer.config
    last = config.TRAIN.EPOCHS - 1
    shown = {last * n // (_EPOCHS_SHOWN - 1) for n in range(_EPOCHS_SHOWN)} | {min(config.TRAIN.WARMUP_EPOCHS, last)}
    rates = []
    for epoch in sorted(shown):
        trainer.schedule.step_update(epoch * per_epoch)
        if epoch:
            trainer.schedule.step(epoch)
        rates.append((epoch, present_rate(trainer.optimizer)))
    trainer.schedule.step_update(0)
    return rates


def _one_update(trainer: Trainer, data: Data) -> tuple[float, float]:
    """Make one update and return the seconds of loading and of computing one batch."""
    assert data.train is not None
    trainer.model.train(trainer.config.TRAIN.TRAIN_MODE)
    for prepare in trainer.each_epoch:
        prepare(0)
    window = min(trainer.config.TRAIN.ACCUMULATION_STEPS, len(data.train))
    clock, loading, computing = Clock(), 0.0, 0.0
    finite = torch.ones((), device=trainer.world.device)
    for step, (images, labels) in enumerate(islice(data.train, window)):
        loading += clock.lap()
        loss = forward_backward(trainer, images, labels, window, synchronise=step == window - 1)
        finite = finite * torch.isfinite(loss)
        computing += clock.lap()
    update(trainer, finite, 0, window - 1)
    broken = [not bool(torch.isfinite(own_part(parameter)).all()) for parameter in trainer.network.parameters()]
    if trainer.world.highest(torch.tensor([float(any(broken))], device=trainer.world.device))[0]:
        rate = trainer.config.TRAIN.BASE_LR
        raise UserError(f"the weights are not finite after one update; lower TRAIN.BASE_LR {rate}")
    return loading / window, (computing + clock.lap()) / window


def _round_trip(trainer: Trainer, data: Data, folder: Path) -> int:
    """Write a checkpoint, read it back into the trainer, and return its bytes."""
    assert data.train is not None
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    checkpoints = Checkpoints(trainer, Progress(epoch=1), data.train, data.classes, folder)
    if not checkpoints.save():
        raise UserError(f"no checkpoint can be written: {checkpoints.missed}")
    resume(trainer, folder / LAST, data.train)
    for key, value in trainer.network.state_dict().items():
        if not torch.equal(own_part(value), own_part(before[key])):
            raise UserError(f"{key} is not the same after a checkpoint was written and read; do not train on this disk")
    size = (folder / LAST).stat().st_size
    trainer.world.gather(None)  # the first deletes the folder when all have read it
    return size


def _plan(
    trainer: Trainer,
    data: Data,
    per_epoch: int,
    rates: list[tuple[int, float]],
    loading: float,
    seconds: float,
    size: int,
) -> Table:
    assert data.train is not None
    config, world, device = trainer.config, trainer.world, trainer.world.device
    parameters = list(trainer.network.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    length = datetime.timedelta(seconds=int(config.TRAIN.EPOCHS * len(data.train) * max(loading, seconds)))
    kept = f"{config.KEEP_CHECKPOINTS} kept" if config.KEEP_CHECKPOINTS else "all kept"
    rows = {
        "model": f"{config.MODEL.TYPE}/{config.MODEL.NAME}, {len(data.classes)} classes",
        "parameters": f"{sum(p.numel() for p in parameters):,}, {trained:,} of them trained",
        "image": f"{' x '.join(map(str, image_size(config)))}, {_flops(config)}",
        "data": f"{data.train.images:,} training images, {data.held_out.images:,} held out",
        "processes": f"{world.size} on {device.type}, {trainer.precision}"
        + (f", {config.TRAIN.PARALLEL}" if world.size > 1 else ""),
        "epochs": f"{config.TRAIN.EPOCHS}, {per_epoch:,} updates each, {config.TRAIN.EPOCHS * per_epoch:,} in all",
        "images per update": f"{images_per_update(config, world):,}: {config.DATA.BATCH_SIZE} in each of {world.size} "
        f"processes and {config.TRAIN.ACCUMULATION_STEPS} steps",
        "optimizer": f"{config.TRAIN.OPTIMIZER.NAME}, {len(trainer.optimizer.param_groups)} groups, weight decay "
        f"{config.TRAIN.WEIGHT_DECAY:g}",
        "learning rate": f"{config.TRAIN.LR_SCHEDULER.NAME}: "
        + ", ".join(f"epoch {epoch} {rate:.3g}" for epoch, rate in rates),
        "first step": f"{loading:.2f} s to load, {seconds:.2f} s to compute: at this pace {length} without evaluation; "
        "a first step is slower than the others",
        "memory": f"{memory_megabytes(device):,.0f} MB at most {'on the GPU' if device.type == 'cuda' else 'so far'}",
        "checkpoint": f"{size / 2**20:,.1f} MB, written and read back; {kept}",
    }
    table = Table("dry run", "", show_header=False, title="dry run: nothing was trained")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _flops(config: CfgNode) -> str:
    with torch.device("meta"):
        network = model_from_config(config)
    try:
        return f"{count_model(network, image_size(config)).gflops:.3f} GFLOPs"
    except UserError as error:
        return f"GFLOPs unknown ({error})"
