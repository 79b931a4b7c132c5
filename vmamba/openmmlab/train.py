"""Train a detector, segmentor or classifier: ``python -m vmamba.openmmlab.train CONFIG``, or with torchrun."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint

from vmamba.command_line import Parser
from vmamba.errors import UserError, exit_on_user_error
from vmamba.openmmlab.checks import IMAGE_CHECKS, check_classes, check_files, check_images
from vmamba.openmmlab.configs import start_empty
from vmamba.openmmlab.running import (
    add_config,
    add_run,
    build_runner,
    end_processes,
    opened_config,
    refusals_of,
    start_processes,
)
from vmamba.weights.reading import require_file


@exit_on_user_error
def main(argv: Sequence[str] | None = None, prog: str = "python -m vmamba.openmmlab.train") -> int:
    parser = Parser(prog=prog, description=__doc__)
    add_config(parser)
    add_run(parser)
    parser.add_argument("--amp", action="store_true", help="mixed precision (optim_wrapper.dtype=bfloat16 chooses it)")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate with the whole batch")
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="FILE", help="go on from FILE, or from the newest in the work dir"
    )
    parser.add_argument(
        "--check-images",
        choices=IMAGE_CHECKS,
        default="ends",
        help="before training look at every image's beginning and end (default), decode all, or none",
    )
    options = parser.parse(argv)
    cfg = opened_config(options)
    _apply(cfg, options)
    check_files(cfg, ("train", "val"))
    start_processes(cfg)
    try:
        runner = build_runner(cfg, options.config)
        _check_data(runner, options)
        start = Start()
        runner.register_hook(start)
        with refusals_of(options.config, lambda: start.begun):
            runner.train()
    finally:
        end_processes()
    return 0


class Start(Hook):
    """Knows whether training has begun; what fails before is the configuration's fault."""

    begun = False

    def before_train(self, runner: Runner) -> None:
        self.begun = True


def _apply(cfg: Config, options: Namespace) -> None:
    """Write what the flags say into the configuration."""
    if options.amp and not torch.cuda.is_available():
        raise UserError("--amp: torch sees no GPU here; leave it out")
    if options.amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    if options.auto_scale_lr:
        if not cfg.get("auto_scale_lr", {}).get("base_batch_size"):
            raise UserError(f"--auto-scale-lr: {options.config} has no auto_scale_lr.base_batch_size; set it")
        cfg.auto_scale_lr.enable = True
    if options.resume:
        cfg.resume = True
        cfg.load_from = None if options.resume == "auto" else options.resume
    start = cfg.get("load_from") or (find_latest_checkpoint(cfg.work_dir) if cfg.get("resume") else None)
    if start:
        if "://" not in start:
            require_file(Path(start))
        start_empty(cfg)


def _check_data(runner: Runner, options: Namespace) -> None:
    """Build the data sets and look whether model and images go with them."""
    with refusals_of(options.config):
        loops = {"train": runner.train_loop, "val": runner.val_loop}
    for split, loop in loops.items():
        if loop is None:
            continue
        where, dataset = f"{split}_dataloader", loop.dataloader.dataset
        if not len(dataset):
            raise UserError(f"{where}: no image is left of the annotations; look at ann_file, data_prefix and classes")
        check_classes(runner.model, dataset, where)
        check_images(dataset, where, options.check_images)


if __name__ == "__main__":
    raise SystemExit(main())
