"""The run: parse, build, loop, close."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from yacs.config import CfgNode

from classification.arguments import parse
from classification.build import build_network, build_trainer, load_pretrained, updates_per_epoch
from classification.checkpoint import BEST, Checkpoints, find_resume, resume
from classification.checks import ignored_settings, overruled_by_resume
from classification.config import as_yaml
from classification.curves import draw_curves
from classification.data import Data, build_data
from classification.dry_run import dry_run, scratch_folder
from classification.environment import restarts, write_environment
from classification.failures import explained
from classification.finetuning import fetch_weights
from classification.labels import LABELS
from classification.log import Bar, close_logger, create_logger
from classification.parallel import whole_on_every_process
from classification.profiling import StepProfile
from classification.progress import EpochSoFar, Progress
from classification.records import Records
from classification.report import report_best
from classification.rng import seed_everything
from classification.run_folder import open_run_folder, write_settings
from classification.schedule import continue_schedule
from classification.stopping import Interrupted
from classification.task import Task
from classification.throughput import measure_throughput, measure_training_cost
from classification.train import EpochSummary, Trainer, TrainingStopped, train_one_epoch
from classification.world import World, start_world
from vmamba.errors import UserError
from vmamba.host_memory import keep_freed_memory


def main(argv: Sequence[str] | None = None, task: Task = LABELS) -> int:
    """Run what the command line asks for and return the exit code: 0, 1 (training cannot go on), or a signal's."""
    config, stated = parse(argv, task.program)
    task.check(config, stated)
    keep_freed_memory()
    console = Console(file=sys.stdout)
    with (
        start_world(config.DEVICE, config.MEMORY_LIMIT_RATE, config.TIMEOUT) as world,
        scratch_folder(config, world) if config.DRY_RUN else open_run_folder(config, world) as folder,
    ):
        logger = create_logger(config.MODEL.NAME, world.rank, folder, console)
        try:
            run(config, stated, world, folder, logger, console, task)
        except TrainingStopped as error:
            logger.error(str(error))
            if not world.first:  # whose log lines go to a file alone
                print(f"error: {error}", file=sys.stderr, flush=True)
            return 1
        except Interrupted as stop:
            logger.warning(f"ended by {stop}, exit code {stop.code}; the same command goes on from here")
            return stop.code
        except KeyboardInterrupt:
            logger.error("interrupted; the same command goes on after the last checkpoint")
            return 130
        finally:
            close_logger(logger)
    return 0


def run(
    config: CfgNode,
    stated: set[str],
    world: World,
    folder: Path,
    logger: logging.Logger,
    console: Console,
    task: Task = LABELS,
) -> None:
    """Build the parts of the run and train, evaluate or measure."""
    seed_everything(config.SEED + world.rank)
    for line in ignored_settings(config, stated):
        logger.warning(line)
    if config.THROUGHPUT_MODE:
        measure_throughput(build_network(config, world, logger), config, world.device, logger)
        return
    if config.TRAINCOST_MODE:
        measure_training_cost(build_network(config, world, logger), config, world.device, logger)
        return
    fetch_weights(config, world)
    data = build_data(config, stated, world, folder, logger)
    trainer = build_trainer(config, build_network(config, world, logger), data, world, logger)
    trainer.loss_of = task.loss
    logger.info(f"{world.size} process(es) on {world.device.type}, {trainer.precision}, {len(data.classes)} classes")
    if config.EVAL_MODE:
        source = load_for_evaluation(trainer, folder)
        found: list[tuple[Any, Any]] = []
        evaluate_all(trainer, data, task, found)
        score, findings = max(reversed(found), key=lambda pair: pair[0].merit)
        task.report(findings, score, Path(source), folder, world, logger)
        return
    progress = start(trainer, data, folder)
    if config.DRY_RUN:
        dry_run(trainer, data, updates_per_epoch(config, data), folder, console)
        return
    restart = restarts(world)
    world.from_first(lambda: write_environment(folder, data, trainer.network, world, progress.epoch, restart))
    train(trainer, data, progress, folder, console, task)


def start(trainer: Trainer, data: Data, folder: Path) -> Progress:
    """Fill the trainer with the state to start from: a resumed run, pretrained weights or fresh ones."""
    config, logger = trainer.config, trainer.logger
    checkpoint = find_resume(folder, config.MODEL.RESUME, config.TRAIN.AUTO_RESUME, trainer.world, logger)
    if checkpoint is None and config.MODEL.PRETRAINED:
        load_pretrained(config, trainer)
    for line in overruled_by_resume(config, checkpoint):
        logger.warning(line)
    trainer.world.from_first(lambda: write_settings(config, folder))
    logger.debug(as_yaml(config))
    if checkpoint is not None:
        assert data.train is not None
        return resume(trainer, checkpoint, data.train)
    trainer.updates = config.TRAIN.START_EPOCH * updates_per_epoch(config, data)
    continue_schedule(trainer.schedule, trainer.updates, config.TRAIN.START_EPOCH, None)
    return Progress(epoch=config.TRAIN.START_EPOCH)


def train(
    trainer: Trainer, data: Data, progress: Progress, folder: Path, console: Console, task: Task = LABELS
) -> None:
    """Train the epochs that are left; after each one evaluate, record and save; at the end say where everything is.

    Raises `Interrupted`, after a checkpoint, when a signal asks for the end, and `TrainingStopped` when the run cannot
    go on or its last checkpoint could not be written.
    """
    assert data.train is not None
    config, world, logger = trainer.config, trainer.world, trainer.logger
    steps, began = len(data.train), time.monotonic()
    if progress.epoch >= config.TRAIN.EPOCHS:
        logger.info(f"all {config.TRAIN.EPOCHS} epochs are done; --tag NAME starts another run, --epochs N trains on")
        evaluate_all(trainer, data, task)
    records = Records(folder, progress.epoch, config, logger) if world.first else None
    checkpoints = Checkpoints(trainer, progress, data.train, data.classes, folder)
    data.held_out.enough = lambda: trainer.stopping.requested > 0
    done = progress.epoch * steps + trainer.so_far.step
    with (
        closing(records) if records is not None else nullcontext(),
        trainer.stopping,
        explained(trainer, progress),
        Bar(console, config.TRAIN.EPOCHS * steps, done, visible=world.first) as bar,
        StepProfile(config.PROFILE, folder, world, logger, bar.step) as profile,
    ):
        try:
            for epoch in range(progress.epoch, config.TRAIN.EPOCHS):
                summary = train_one_epoch(trainer, data.train, epoch, profile.step, checkpoints.after_update)
                scores = evaluate_all(trainer, data, task)
                merits = [score.merit for score in scores]
                trainer.schedule.step(epoch + 1, merits[0])  # moves `plateau` alone
                before = replace(progress)
                better = take_scores(progress, epoch, merits, task.noun, logger)
                trainer.so_far = EpochSoFar()
                if records is not None:
                    records.add(_row(epoch, summary, [task.row(score) for score in scores]))
                if better and not checkpoints.save_best():
                    progress.best_was(before)
                if checkpoints.due(epoch):
                    checkpoints.save()
        except Interrupted as stop:
            checkpoints.save()
            if checkpoints.missed:
                raise TrainingStopped(f"{stop} ends the run, and {checkpoints.missed}") from None
            raise
    logger.info(f"Training time {datetime.timedelta(seconds=int(time.monotonic() - began))}")
    data.held_out.enough = lambda: False
    report_best(trainer, data, folder, task)
    if records is not None:
        logger.info(f"best {task.noun} {progress.best:.2f}%")
        logger.info(f"checkpoint {folder / BEST}")
        logger.info(f"curves     {_drawn(folder)}")
        logger.info(f"log        {folder / 'log_rank0.txt'}")
        task.close(config, folder, logger)
    if checkpoints.missed:
        raise TrainingStopped(f"all epochs are trained, but not all is on the disk: {checkpoints.missed}")


def evaluate_all(
    trainer: Trainer, data: Data, task: Task = LABELS, found: list[tuple[Any, Any]] | None = None
) -> list[Any]:
    """Return the scores of the weights and, where there is one, of their average, logged in the published form.

    `found` takes (score, findings) of each; findings are collected only where there is such a list.
    """
    networks = {"": trainer.network}
    if trainer.average is not None:
        networks[" ema"] = trainer.average.on(trainer.world.device)
    scores = []
    for label, network in networks.items():
        findings = task.new_findings(trainer.config, data) if found is not None else None
        with whole_on_every_process(network):
            score = task.score(trainer, network, data, findings)
        if found is not None:
            found.append((score, findings))
        trainer.logger.info(task.told(label, score))
        scores.append(score)
    return scores


def take_scores(progress: Progress, epoch: int, merits: Sequence[float], noun: str, logger: logging.Logger) -> bool:
    """Move `progress` past `epoch` and return True when one of the `merits` is the best of the run so far.

    They are those of the weights and, where there is one, of the average.
    """
    best_before = progress.best
    progress.epoch = epoch + 1
    progress.max_accuracy = max(progress.max_accuracy or merits[0], merits[0])
    logger.info(f"Max {noun}: {progress.max_accuracy:.2f}%")
    averaged = len(merits) > 1
    if averaged:
        progress.max_accuracy_ema = max(progress.max_accuracy_ema or merits[1], merits[1])
        logger.info(f"Max {noun} ema: {progress.max_accuracy_ema:.2f}%")
    if max(merits) > best_before or best_before == 0:
        progress.best_is_ema = averaged and merits[1] >= merits[0]
        return True
    return False


def load_for_evaluation(trainer: Trainer, folder: Path) -> str:
    """Fill the trainer with the weights of --resume, --pretrained or the run folder, in this order; return the file."""
    config = trainer.config
    source = config.MODEL.RESUME or config.MODEL.PRETRAINED
    if not source:
        found = folder / BEST
        if not found.exists():
            raise UserError(f"--eval needs weights: --pretrained FILE, or the --tag of a run; there is no {found}")
        source = str(found)
    config.MODEL.PRETRAINED = source
    load_pretrained(config, trainer)
    return source


def _drawn(folder: Path) -> str:
    try:
        return str(draw_curves(folder))
    except (OSError, UserError) as error:
        return f"cannot be drawn: {error}"


def _row(epoch: int, summary: EpochSummary, scores: list[dict[str, float]]) -> dict[str, Any]:
    """Return the figures of an epoch; `scores` are those of the weights and of their average."""
    row: dict[str, Any] = {
        "epoch": epoch,
        "lr": summary.lr,
        "train_loss": summary.loss,
        "grad_norm": summary.grad_norm,
        "seconds": round(summary.seconds, 3),
        "images_per_second": round(summary.images_per_second, 1),
        **scores[0],
    }
    return row | {f"ema_{name}": value for score in scores[1:] for name, value in score.items()}
