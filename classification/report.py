"""What an evaluation leaves in the run folder: score, confusion matrix, table of classes, worst predictions."""

from __future__ import annotations

import datetime
import json
import logging
from dataclasses import asdict
from pathlib import Path

from yacs.config import CfgNode

from classification.checkpoint import BEST
from classification.confusion import write_confusion
from classification.data import Data
from classification.environment import command_line
from classification.evaluate import Score
from classification.findings import Findings
from classification.model_card import write_model_card
from classification.per_class import write_per_class
from classification.task import Task
from classification.train import Trainer
from classification.world import World
from classification.worst import write_worst
from vmamba.errors import UserError
from vmamba.models.from_config import model_from_config
from vmamba.weights import load_checkpoint, load_weights, write_text

EVALUATION, SCORES = "evaluation", "scores.json"


def new_findings(config: CfgNode, data: Data) -> Findings | None:
    """Return what collects the findings of one evaluation, or None when ``REPORT`` is off."""
    if not config.REPORT:
        return None
    return Findings(data.classes, config.DATA.MEAN, config.DATA.STD, data.held_out.name)


def named_after_weights(name: str, weights: Path, run: Path) -> str:
    """Return what an evaluation of `weights` calls `name`: so for the run's best ones, NAME_WEIGHTS for other files."""
    if weights.resolve() == (run / BEST).resolve():
        return name
    path = Path(name)
    return f"{path.stem}_{weights.stem}{path.suffix}"


def write_report(
    findings: Findings | None, score: Score, weights: Path, run: Path, world: World, logger: logging.Logger
) -> None:
    """Write the findings of an evaluation of `weights`, of all processes, below the folder of a run, and say where.

    The weights that are the run's best go by their name; those of another file have a folder of their own.
    A disk that refuses, or a plotting library that is missing, costs a warning and not the run.
    """
    if findings is None:
        return
    findings.gather(world)
    if not world.first:
        return
    folder = run / named_after_weights(EVALUATION, weights, run)
    name = weights.name if folder.name == EVALUATION else str(weights)
    about = {"weights": name, **asdict(score), "classes": len(findings.classes)}
    about |= {"date": datetime.datetime.now().isoformat(timespec="seconds"), "command": command_line()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_per_class(findings, folder)
        write_confusion(findings, folder)
        write_worst(findings, folder)
        write_text(folder / SCORES, json.dumps(about, indent=1) + "\n")
    except (UserError, OSError, ImportError) as error:
        logger.warning(f"the report of the evaluation is not complete: {error}")
        return
    logger.info(f"evaluation {folder}: confusion matrix, accuracy per class, worst predictions of {name}")


def report_best(trainer: Trainer, data: Data, folder: Path, task: Task) -> None:
    """Evaluate the best weights of a finished run once more, this time with a report.

    They are read back from ``best.pth``, so that the report is of the file that one will use.
    """
    config, world = trainer.config, trainer.world
    findings = task.new_findings(config, data)
    best = folder / BEST
    if findings is None or not world.from_first(best.exists):
        return
    network = model_from_config(config).to(world.device)
    load_weights(network, load_checkpoint(best), quiet=True)
    score = task.score(trainer, network, data, findings, final=True)
    task.report(findings, score, best, folder, world, trainer.logger)


def add_model_card(config: CfgNode, folder: Path, logger: logging.Logger) -> None:
    """Write the model card of a finished run and say where it is; what hinders it costs a warning."""
    if not config.REPORT:
        return
    try:
        logger.info(f"model card {write_model_card(folder)}")
    except (UserError, OSError) as error:
        logger.warning(f"there is no model card: {error}")
