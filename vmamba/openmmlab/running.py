"""What training and testing have in common: their words, the processes, and the runner."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from vmamba.command_line import Parser
from vmamba.errors import UserError
from vmamba.openmmlab.configs import fit_to_machine, line_of, read_config

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")


def add_config(parser: Parser) -> None:
    """Add the configuration file and the changes to it, which every command takes."""
    parser.add_argument("config", metavar="CONFIG", help="a configuration file")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help='changes to it: train_dataloader.batch_size=4 model.backbone.out_indices="(0,1,2,3)"',
    )


def add_run(parser: Parser) -> None:
    """Add the words that training and testing share."""
    parser.add_argument("--work-dir", metavar="DIR", help="logs and results (default work_dirs/NAME OF THE CONFIG)")
    parser.add_argument("--launcher", choices=LAUNCHERS, help="who starts the processes (default: torchrun, if it did)")


def opened_config(options: Namespace) -> Config:
    """Return the configuration that `options` name, with their changes, its folder, and fitted to the machine."""
    cfg = read_config(options.config, options.cfg_options)
    cfg.launcher = options.launcher or ("pytorch" if {"RANK", "WORLD_SIZE"} <= set(os.environ) else "none")
    if options.work_dir or not cfg.get("work_dir"):
        cfg.work_dir = options.work_dir or str(Path("work_dirs", Path(options.config).stem))
    if cfg.get("visualizer"):  # one for each run of a process: mmengine keeps the first of a name, and its folder
        cfg.visualizer.name = f"{cfg.visualizer.get('name', 'visualizer')} of {Path(cfg.work_dir).absolute()}"
    fit_to_machine(cfg)
    return cfg


def start_processes(cfg: Config) -> None:
    """Join the group of torchrun's processes on a machine without GPUs, where mmengine would look for one."""
    if cfg.launcher == "pytorch" and not torch.cuda.is_available() and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")


def end_processes() -> None:
    """Leave the group of processes, so that none is torn down while another still uses it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def refusals_of(name: str, begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Make what OpenMMLab refuses inside a `UserError` of one line about `name`, unless something has `begun`."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError, ImportError, OSError) as error:
        if begun():
            raise
        raise UserError(f"{name}: {line_of(error)}") from error


def build_runner(cfg: Config, name: str) -> Runner:
    """Return the runner of a configuration; `name` is what messages call it."""
    with refusals_of(name):
        return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
