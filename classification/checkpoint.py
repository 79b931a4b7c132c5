"""The checkpoints of a run: what they hold, which are kept, how a run continues from one.

A run folder, OUTPUT/MODEL.NAME/TAG::

    ckpt_epoch_7.pth            the whole state after epoch 7 (the newest KEEP_CHECKPOINTS stay)
    ckpt_epoch_8_step_120.pth   the same inside epoch 8, after 120 of its steps: by SAVE_STEPS, or on a signal
    last.pth                    another name of the newest of these
    best.pth                    the weights that scored best so far, for evaluation and prediction
    manifest.json               their sha256 digests

Every checkpoint is written between two updates, so there are no gradients to keep. It holds the weights, their average
and the best scores, the optimizer, the schedule, the loss scale, the place in the epoch and, of every process, the
random states (which are all that mixup, drop path and dropout have) and the sums of the epoch so far. The loaders have
no state: batch k of an epoch, its augmentation included, follows from the seed, the epoch and k (see `SeededBatches`).
"""

from __future__ import annotations

import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from classification.config import as_plain, changed_keys
from classification.data import Batches
from classification.orders import order_name
from classification.parallel import gathered
from classification.progress import EpochSoFar, Layout, Progress
from classification.rng import capture_states, restore_states, seed_everything
from classification.schedule import continue_schedule
from classification.train import Trainer
from classification.world import World
from vmamba.errors import UserError
from vmamba.weights import (
    drop_checkpoint,
    link_checkpoint,
    load_checkpoint,
    load_weights,
    newest_good_checkpoint,
    save_checkpoint,
    set_aside,
)

LAST, BEST = "last.pth", "best.pth"
_PATTERN = "ckpt_epoch_*.pth"
_INSIDE = re.compile(r"ckpt_epoch_(\d+)_step_(\d+)")
# Keys that may differ between two parts of one run.
_FREE_KEYS = (
    "MODEL.RESUME",
    "MODEL.PRETRAINED",
    "DATA.NUM_WORKERS",
    "OUTPUT",
    "TAG",
    "PRINT_FREQ",
    "EVAL_MODE",
    "DEVICE",
    "KEEP_CHECKPOINTS",
    "SAVE_",
    "TIMEOUT",
    "TENSORBOARD",
    "WANDB",
    "MLFLOW",
    "REPORT",
    "PROFILE",
    "CARD.",
)


class Checkpoints:
    """Writes the checkpoints of one run. All processes call it together; the first one writes.

    What the disk refuses is an error in the log and not the end of the run: the checkpoint before is intact, training
    goes on, and the next save tries again. `missed` tells what is still not on the disk.
    """

    def __init__(self, trainer: Trainer, progress: Progress, data: Batches, classes: list[str], folder: Path) -> None:
        self.trainer, self.progress, self.classes, self.folder = trainer, progress, list(classes), folder
        self.layout = layout_of(trainer, data)
        self._missed: dict[str, str] = {}
        self._saved: tuple[int, int] | None = None

    @property
    def missed(self) -> str | None:
        """Why the newest state or the best weights could not be written; None when both are on the disk."""
        return next(iter(self._missed.values()), None)

    def after_update(self) -> None:
        """Save every ``SAVE_STEPS`` updates, unless the end of the epoch saves anyway."""
        every, updates = self.trainer.config.SAVE_STEPS, self.trainer.updates
        ends = self.trainer.so_far.step == self.layout.steps and self.due(self.progress.epoch)
        if every and updates % every == 0 and not ends:
            self.save()

    def due(self, epoch: int) -> bool:
        """Return True when ``SAVE_FREQ`` asks for a checkpoint after `epoch`; there is one after the last epoch."""
        config = self.trainer.config
        return epoch % config.SAVE_FREQ == 0 or epoch == config.TRAIN.EPOCHS - 1

    def save(self) -> bool:
        """Write the whole state at the present place, once, and drop the oldest checkpoints; False if refused."""
        trainer, progress, step = self.trainer, self.progress, self.trainer.so_far.step
        if self._saved == (progress.epoch, step):
            return True
        states = trainer.world.gather((capture_states(trainer.world.device), trainer.so_far.state()))
        parts = {"model": trainer.network.state_dict(), "optimizer": trainer.optimizer.state_dict()}
        if trainer.average is not None:
            parts["model_ema"] = trainer.average.network.state_dict()
        parts = gathered(parts, keep=trainer.world.first)
        name = f"ckpt_epoch_{progress.epoch}_step_{step}.pth" if step else f"ckpt_epoch_{progress.epoch - 1}.pth"

        def write() -> None:
            payload = {
                **self._common(),
                **parts,
                "lr_scheduler": _plain(trainer.schedule.state_dict()),
                "scaler": trainer.precision.scaler.state_dict(),
                "nonfinite_in_a_row": trainer.nonfinite_in_a_row,
                "layout": self.layout.state(),
                "rng": [rng for rng, _ in states],
                "so_far": [so_far for _, so_far in states],
            }
            save_checkpoint(self.folder / name, payload)
            link_checkpoint(self.folder / name, self.folder / LAST)
            drop_old(self.folder, trainer.config.KEEP_CHECKPOINTS)

        if self._try(LAST, write):
            self._saved = (progress.epoch, step)
            return True
        return False

    def save_best(self) -> bool:
        """Write the weights that have just scored best as ``best.pth``, under the key ``model``; False if refused."""
        average = self.trainer.average if self.progress.best_is_ema else None
        network = self.trainer.network if average is None else average.network
        weights = gathered(network.state_dict(), keep=self.trainer.world.first)
        parts = {"model": weights, "weights": "model" if average is None else "model_ema"}
        return self._try(BEST, lambda: save_checkpoint(self.folder / BEST, {**self._common(), **parts}))

    def _try(self, name: str, write: Any) -> bool:
        try:
            self.trainer.world.from_first(write)
        except UserError as error:
            self._missed[name] = str(error)
            self.trainer.logger.error(f"{error}; training goes on, and the next save tries again")
            return False
        self._missed.pop(name, None)
        return True

    def _common(self) -> dict[str, Any]:
        return {
            **asdict(self.progress),
            "epoch": self.progress.epoch - 1,
            "config": as_plain(self.trainer.config),
            "class_names": self.classes,
            "world_size": self.trainer.world.size,
        }


def layout_of(trainer: Trainer, batches: Batches) -> Layout:
    """Return how the present configuration cuts an epoch."""
    config = trainer.config
    per_step = config.DATA.BATCH_SIZE * trainer.world.size
    order = order_name(config, trainer.world)
    return Layout(batches.images, per_step, len(batches), config.TRAIN.ACCUMULATION_STEPS, config.SEED, order)


def drop_old(folder: Path, keep: int) -> None:
    """Delete what goes: all but the newest `keep` of whole epochs, and of those inside an epoch (0 keeps all).

    Those inside an epoch also go when a later epoch has its own. The newest of all always stays; it has just been
    written, and what a resume finds damaged is set aside, so it is good.
    """
    whole = sorted((path for path in folder.glob(_PATTERN) if not _INSIDE.match(path.stem)), key=_place)
    inside = sorted((path for path in folder.glob(_PATTERN) if _INSIDE.match(path.stem)), key=_place)
    over = [path for path in inside if whole and _place(path)[0] < _place(whole[-1])[0]]
    inside = [path for path in inside if path not in over]
    for path in [*over, *(whole[:-keep] + inside[:-keep] if keep else ())]:
        drop_checkpoint(path)


def _place(path: Path) -> tuple[int, float]:
    """Return (epoch, step) of a checkpoint's name, the step after all others for a whole epoch."""
    inside = _INSIDE.match(path.stem)
    if inside:
        return int(inside[1]), int(inside[2])
    digits = path.stem.rpartition("_")[2]
    return (int(digits), float("inf")) if digits.isdigit() else (-1, 0)


def find_resume(folder: Path, resume: str, automatic: bool, world: World, logger: logging.Logger) -> Path | None:
    """Return the checkpoint to continue from: the newest good one of `folder`, else `resume`, else None.

    A damaged newest checkpoint is passed over with one warning that names both, and renamed to ``NAME.damaged``; when
    all are damaged, `UserError`. So it is when auto-resume is off and `folder` has checkpoints: two runs would mix
    there.
    """

    def choose() -> Path | None:
        if not automatic and any(folder.glob(_PATTERN)):
            raise UserError(f"TRAIN.AUTO_RESUME is off, but {folder} has checkpoints; choose another --tag")
        found, rejected = newest_good_checkpoint(folder, _PATTERN, _place) if automatic else (None, [])
        if found is None and rejected:
            raise UserError(
                f"every checkpoint in {folder} is damaged, the newest, {rejected[0][0].name}: {rejected[0][1]}; "
                "delete them or choose another --tag to start afresh"
            )
        if found is not None and rejected:
            names = ", ".join(path.name for path, _ in rejected)
            logger.warning(f"{names} is damaged ({rejected[0][1]}); resuming from {found.name} instead")
            for path, _ in rejected:
                set_aside(path)
        return found or (Path(resume) if resume else None)

    return world.from_first(choose)


def resume(trainer: Trainer, path: Path, batches: Batches) -> Progress:
    """Put `trainer` in the state of the checkpoint at `path` and return the progress of that run.

    Weights load strictly. Learning rate, decay and schedule follow the present configuration at the place reached, so
    that another batch size, accumulation or number of processes continues at the right place.
    """
    payload = load_checkpoint(path)
    for key in ("model", "optimizer", "epoch"):
        if key not in payload:
            raise UserError(f"{path} has no '{key}', so it cannot be resumed; --pretrained takes its weights")
    _warn_changes(trainer, payload, path)
    load_weights(trainer.network, payload, entry="model", quiet=True, source_name=str(path))
    if trainer.average is not None:
        entry = "model_ema" if "model_ema" in payload else "model"
        if entry == "model":
            trainer.logger.warning(f"{path.name} has no averaged weights; the average starts from its model")
        load_weights(trainer.average.network, payload, entry=entry, quiet=True, source_name=str(path))
    _restore_optimizer(trainer.optimizer, payload["optimizer"], path)
    if trainer.precision.scaler.is_enabled() and payload.get("scaler"):
        trainer.precision.scaler.load_state_dict(payload["scaler"])
    trainer.nonfinite_in_a_row = int(payload.get("nonfinite_in_a_row", 0))
    progress = stored_progress(payload)
    layout = layout_of(trainer, batches)
    trainer.so_far = _restore_so_far(trainer, payload, layout, path)
    trainer.updates = progress.epoch * layout.updates + layout.updates_at(trainer.so_far.step)
    continue_schedule(trainer.schedule, trainer.updates, progress.epoch, payload.get("lr_scheduler"))
    _restore_rng(trainer, payload.get("rng") or [], progress.epoch)
    place = f"after epoch {progress.epoch - 1}"
    if trainer.so_far.step:
        place = f"{trainer.so_far.step} of {layout.steps} steps into epoch {progress.epoch}"
    trainer.logger.info(f"resumed {path} {place}, best score {progress.best:.2f}%")
    return progress


def stored_progress(payload: dict[str, Any]) -> Progress:
    """Return the progress that a training checkpoint holds; reads the published spelling ``max_accuray_ema`` too."""
    ema = payload.get("max_accuracy_ema", payload.get("max_accuray_ema", 0.0))
    return Progress(
        epoch=int(payload.get("epoch", -1)) + 1,
        max_accuracy=float(payload.get("max_accuracy", 0.0)),
        max_accuracy_ema=float(ema),
        best_is_ema=bool(payload.get("best_is_ema", False)),
    )


def _warn_changes(trainer: Trainer, payload: dict[str, Any], path: Path) -> None:
    old = payload.get("config")
    if isinstance(old, dict):
        rows = [row for row in changed_keys(old, as_plain(trainer.config)) if not row.startswith(_FREE_KEYS)]
        if rows:
            trainer.logger.warning(f"{path.name} was written with other settings: {'; '.join(rows)}")
    size = payload.get("world_size", trainer.world.size)
    if size != trainer.world.size:
        trainer.logger.warning(f"{path.name} was written by {size} processes, there are {trainer.world.size} now")


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """Load the moments; the settings of the groups stay those of the present configuration."""
    present = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"the optimizer state of {path} does not fit {type(optimizer).__name__}: {error}; keep TRAIN.OPTIMIZER and "
            f"TRAIN.DECAY_GROUPS, or start from the weights with --pretrained {path}"
        ) from None
    for group, settings in zip(optimizer.param_groups, present):
        group.update(settings)


def _restore_so_far(trainer: Trainer, payload: dict[str, Any], layout: Layout, path: Path) -> EpochSoFar:
    """Return what the checkpoint has of an unfinished epoch, at the step of the present layout that it amounts to."""
    states = payload.get("so_far") or []
    if not states or not states[0]["step"]:
        return EpochSoFar()
    so_far = EpochSoFar.from_state(states[min(trainer.world.rank, len(states) - 1)])
    old = Layout(**payload["layout"])
    step = layout.step_after(so_far.step, old)
    if layout != old:
        place = f"step {step} of {layout.steps}, as {path.name} stopped at {so_far.step} of {old.steps}"
        trainer.logger.warning(f"the steps of an epoch have changed: it goes on at {place}")
        so_far.step = step
    return so_far if step else EpochSoFar()


def _restore_rng(trainer: Trainer, states: list[dict[str, Any]], epoch: int) -> None:
    if trainer.world.rank < len(states):
        restore_states(states[trainer.world.rank], trainer.world.device)
    else:
        seed_everything(trainer.config.SEED + trainer.world.rank + 1000 * epoch)


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return what of a schedule's state is plain data."""
    kinds = (int, float, str, bool, list, tuple, type(None))
    return {key: value for key, value in state.items() if isinstance(value, kinds)}
