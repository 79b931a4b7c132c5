"""The checkpoints of a run: what they hold, which are kept, how a run continues from one.

A run folder, OUTPUT/MODEL.NAME/TAG::

    ckpt_epoch_7.pth   the whole state after epoch 7 (the newest KEEP_CHECKPOINTS stay)
    last.pth           another name of the newest of these
    best.pth           the weights that scored best so far, for evaluation and prediction
    manifest.json      their sha256 digests
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from classification.config import as_plain, changed_keys
from classification.parallel import gathered
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
)

LAST, BEST = "last.pth", "best.pth"
_PATTERN = "ckpt_epoch_*.pth"
# Keys that may differ between two parts of one run.
_FREE_KEYS = (
    "MODEL.RESUME",
    "MODEL.PRETRAINED",
    "OUTPUT",
    "TAG",
    "PRINT_FREQ",
    "EVAL_MODE",
    "DEVICE",
    "KEEP_CHECKPOINTS",
)


@dataclass
class Progress:
    """How far a run is: the next epoch and the best accuracies so far."""

    epoch: int = 0
    max_accuracy: float = 0.0
    max_accuracy_ema: float = 0.0
    best_is_ema: bool = False

    @property
    def best(self) -> float:
        """The best accuracy of either set of weights."""
        return max(self.max_accuracy, self.max_accuracy_ema)


def save_epoch(trainer: Trainer, progress: Progress, classes: list[str], folder: Path) -> None:
    """Write the checkpoint of the epoch that `progress` has just finished, and drop the oldest ones.

    All processes take part; the first one writes. Raises `UserError` on all when the disk refuses.
    """
    states = trainer.world.gather(capture_states(trainer.world.device))
    path = folder / f"ckpt_epoch_{progress.epoch - 1}.pth"
    parts = {"model": trainer.network.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    if trainer.average is not None:
        parts["model_ema"] = trainer.average.network.state_dict()
    parts = gathered(parts, keep=trainer.world.first)

    def write() -> None:
        payload = {
            **_common(trainer, progress, classes),
            **parts,
            "lr_scheduler": _plain(trainer.schedule.state_dict()),
            "scaler": trainer.precision.scaler.state_dict(),
            "rng": states,
        }
        save_checkpoint(path, payload)
        link_checkpoint(path, folder / LAST)
        _keep_newest(folder, trainer.config.KEEP_CHECKPOINTS)

    trainer.world.from_first(write)


def save_best(trainer: Trainer, progress: Progress, classes: list[str], folder: Path) -> None:
    """Write the weights that have just scored best as ``best.pth``, under the key ``model``."""
    average = trainer.average if progress.best_is_ema else None
    network = trainer.network if average is None else average.network
    weights = gathered(network.state_dict(), keep=trainer.world.first)

    def write() -> None:
        payload = _common(trainer, progress, classes)
        payload |= {"model": weights, "weights": "model_ema" if average is not None else "model"}
        save_checkpoint(folder / BEST, payload)

    trainer.world.from_first(write)


def find_resume(folder: Path, resume: str, automatic: bool, world: World, logger: logging.Logger) -> Path | None:
    """Return the checkpoint to continue from: the newest good one of `folder`, else `resume`, else None.

    A damaged newest checkpoint is passed over with one warning that names both; when all are damaged, `UserError`. So
    it is when auto-resume is off and `folder` has checkpoints: two runs would mix there.
    """

    def choose() -> Path | None:
        if not automatic and any(folder.glob(_PATTERN)):
            raise UserError(f"TRAIN.AUTO_RESUME is off, but {folder} has checkpoints; choose another --tag")
        found, rejected = newest_good_checkpoint(folder, _PATTERN) if automatic else (None, [])
        if found is None and rejected:
            raise UserError(
                f"every checkpoint in {folder} is damaged, the newest, {rejected[0][0].name}: {rejected[0][1]}; "
                "delete them or choose another --tag to start afresh"
            )
        if found is not None and rejected:
            names = ", ".join(path.name for path, _ in rejected)
            logger.warning(f"{names} is damaged ({rejected[0][1]}); resuming from {found.name} instead")
        return found or (Path(resume) if resume else None)

    return world.from_first(choose)


def resume(trainer: Trainer, path: Path, updates_per_epoch: int) -> Progress:
    """Put `trainer` in the state of the checkpoint at `path` and return the progress of that run.

    Weights load strictly. Learning rate, decay and schedule follow the present configuration at the epoch reached, so
    that another batch size or number of processes continues at the right place.
    """
    payload = load_checkpoint(path)
    for key in ("model", "optimizer", "epoch"):
        if key not in payload:
            raise UserError(f"{path} has no '{key}', so it cannot be resumed; --pretrained takes its weights")
    _warn_changes(trainer, payload, path)
    load_weights(trainer.network, payload, entry="model", quiet=True)
    if trainer.average is not None:
        entry = "model_ema" if "model_ema" in payload else "model"
        if entry == "model":
            trainer.logger.warning(f"{path.name} has no averaged weights; the average starts from its model")
        load_weights(trainer.average.network, payload, entry=entry, quiet=True)
    _restore_optimizer(trainer.optimizer, payload["optimizer"], path)
    if trainer.precision.scaler.is_enabled() and payload.get("scaler"):
        trainer.precision.scaler.load_state_dict(payload["scaler"])
    progress = stored_progress(payload)
    trainer.updates = progress.epoch * updates_per_epoch
    continue_schedule(trainer.schedule, trainer.updates, payload.get("lr_scheduler"))
    _restore_rng(trainer, payload.get("rng") or [], progress.epoch)
    trainer.logger.info(f"resumed {path} after epoch {progress.epoch - 1}, best accuracy {progress.best:.2f}%")
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


def _common(trainer: Trainer, progress: Progress, classes: list[str]) -> dict[str, Any]:
    return {
        **asdict(progress),
        "epoch": progress.epoch - 1,
        "config": as_plain(trainer.config),
        "class_names": list(classes),
        "world_size": trainer.world.size,
    }


def _keep_newest(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` epoch checkpoints; 0 keeps all."""
    by_epoch = sorted(folder.glob(_PATTERN), key=lambda path: int(path.stem.rpartition("_")[2]))
    for path in by_epoch[: -keep or None] if keep else []:
        drop_checkpoint(path)


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


def _restore_rng(trainer: Trainer, states: list[dict[str, Any]], epoch: int) -> None:
    if trainer.world.rank < len(states):
        restore_states(states[trainer.world.rank], trainer.world.device)
    else:
        seed_everything(trainer.config.SEED + trainer.world.rank + 1000 * epoch)


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return what of a schedule's state is plain data."""
    kinds = (int, float, str, bool, list, tuple, type(None))
    return {key: value for key, value in state.items() if isinstance(value, kinds)}
