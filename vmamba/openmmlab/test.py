"""Evaluate a checkpoint: ``python -m vmamba.openmmlab.test CONFIG CHECKPOINT``, or with torchrun."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from vmamba.command_line import Parser
from vmamba.errors import UserError, exit_on_user_error
from vmamba.openmmlab.checks import check_classes, check_files
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
from vmamba.weights import WeightsDoNotFit, fit_weights, load_checkpoint


@exit_on_user_error
def main(argv: Sequence[str] | None = None, prog: str = "python -m vmamba.openmmlab.test") -> int:
    parser = Parser(prog=prog, description=__doc__)
    add_config(parser)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the weights; every key must fit")
    add_run(parser)
    parser.add_argument("--tta", action="store_true", help="mean over the sizes and flips of the config's tta_pipeline")
    parser.add_argument("--out", metavar="PATH", help="keep predictions: a file .pkl of mmdet's, a folder for mmseg")
    parser.add_argument("--show-dir", metavar="DIR", help="draw predictions into this folder")
    options = parser.parse(argv)
    cfg = opened_config(options)
    start_empty(cfg)
    _apply(cfg, options)
    check_files(cfg, ("test",))
    start_processes(cfg)
    try:
        runner = build_runner(cfg, options.config)
        check_fits(runner.model, options.checkpoint)
        with refusals_of(options.config):
            dataset = runner.test_loop.dataloader.dataset
        check_classes(runner.model, dataset, "test_dataloader")
        _keep_predictions(runner, options)
        runner.test()
    finally:
        end_processes()
    return 0


def check_fits(model: nn.Module, checkpoint: str) -> None:
    """Raise `WeightsDoNotFit` unless every key of the file is one of the model's, and the other way round."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):  # wrapped for several processes, or for sizes
        model = inner
    report, _ = fit_weights(model, load_checkpoint(checkpoint), name=checkpoint)
    if not report.clean:
        raise WeightsDoNotFit(f"{checkpoint} does not fit {type(model).__name__}: {report.summary()}", report)


def _apply(cfg: Config, options: Namespace) -> None:
    """Write what the flags say into the configuration."""
    cfg.load_from, cfg.resume = options.checkpoint, False
    scope = cfg.get("default_scope")
    if options.tta:
        for key in ("tta_model", "tta_pipeline"):
            if key not in cfg:
                raise UserError(f"--tta: {options.config} has no {key}, which says what to take the mean of; add it")
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.tta_model.module = cfg.model
        cfg.model = cfg.tta_model
    if options.show_dir:
        folder = str(Path(options.show_dir).absolute())
        hook = cfg.get("default_hooks", {}).get("visualization")
        if hook is None:
            raise UserError(f"--show-dir: {options.config} has no default_hooks.visualization, which draws; add it")
        hook.draw, hook.interval = True, 1
        if scope == "mmdet":
            hook.test_out_dir = folder
        else:
            cfg.visualizer.save_dir = folder
    if options.out and scope == "mmseg":
        cfg.test_evaluator.update(output_dir=options.out, keep_results=True)
    elif options.out and (scope != "mmdet" or not options.out.endswith((".pkl", ".pickle"))):
        raise UserError(f"--out {options.out}: a file that ends in .pkl for a detector, a folder for a segmentor")


def _keep_predictions(runner: Runner, options: Namespace) -> None:
    """Let a detector's predictions be written too."""
    if options.out and runner.cfg.get("default_scope") == "mmdet":
        from mmdet.evaluation import DumpDetResults

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=options.out))


if __name__ == "__main__":
    raise SystemExit(main())
