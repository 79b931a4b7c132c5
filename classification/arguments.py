"""The command line: the published flags and ours, each of which sets one configuration key."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from yacs.config import CfgNode

from classification.checks import check_values
from classification.config import load_config
from vmamba.command_line import Parser


def parse(argv: Sequence[str] | None = None) -> tuple[CfgNode, set[str]]:
    """Return the checked configuration that the command line asks for, and the set of keys that somebody stated."""
    options = _parser().parse(argv)
    flags = {key: value for key, value in vars(options).items() if key.isupper() and value is not None}
    config, stated = load_config(options.cfg, options.opts or (), flags)
    check_values(config)
    return config, stated


def _flag(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m classification",
        description="Train or evaluate an image classifier; torchrun -m classification for several processes.",
    )

    def switch(group, name: str, key: str, help: str, value: bool = True) -> None:
        group.add_argument(name, dest=key, action="store_const", const=value, help=help)

    def setting(group, name: str, key: str, help: str, **more) -> None:
        group.add_argument(name, dest=key, help=help, **more)

    group = parser.add_argument_group("configuration")
    group.add_argument("--cfg", default="", metavar="FILE", help="yaml of keys; its BASE files are merged first")
    group.add_argument("--opts", nargs="+", metavar="KEY VALUE", help="override keys; the flags below still win")

    group = parser.add_argument_group("data")
    setting(group, "--data-path", "DATA.DATA_PATH", "folder of the data set", metavar="DIR")
    setting(group, "--batch-size", "DATA.BATCH_SIZE", "images per process and step", type=int, metavar="N")
    setting(group, "--workers", "DATA.NUM_WORKERS", "loader processes per training process", type=int, metavar="N")
    setting(group, "--dataset", "DATA.DATASET", "kind of data set, default imagenet; docs/data.md", metavar="NAME")
    setting(group, "--train-split", "DATA.TRAIN_SPLIT", "folder, archive or split to train on", metavar="NAME")
    setting(group, "--val-split", "DATA.VAL_SPLIT", "folder, archive or split to evaluate on", metavar="NAME")
    switch(group, "--download", "DATA.DOWNLOAD", "fetch a data set of torchvision that is not on disk")
    setting(group, "--max-bad", "DATA.MAX_BAD", "unreadable images to skip; more end the run", type=int, metavar="N")
    switch(group, "--zip", "DATA.ZIP_MODE", "read DATA_PATH/train.zip and val.zip")
    setting(group, "--cache-mode", "DATA.CACHE_MODE", "what of them to keep in memory", choices=("no", "full", "part"))

    group = parser.add_argument_group("augmentation")
    switch(group, "--no-aug", "AUG.ENABLE", "train on the images as evaluation sees them", value=False)
    setting(group, "--aa", "AUG.AUTO_AUGMENT", "a policy of timm, or none", metavar="POLICY")
    three = {"action": "store_const", "const": "3a"}
    setting(group, "--three-augment", "AUG.AUTO_AUGMENT", "DeiT III's ThreeAugment, the policy 3a", **three)
    setting(group, "--crop-mode", "AUG.CROP_MODE", "random crop", choices=("rrc", "src", "rkrc", "rkrr"))
    setting(group, "--aug-repeats", "AUG.REPEATS", "repeated augmentation; DeiT takes 3", type=int, metavar="N")

    group = parser.add_argument_group("weights")
    setting(group, "--pretrained", "MODEL.PRETRAINED", "start from these weights", metavar="FILE")
    setting(
        group,
        "--pretrained-entry",
        "MODEL.PRETRAINED_ENTRY",
        "entry of the file that fills the model (auto: 'model', and 'model_ema' fills the average)",
        choices=("auto", "model", "model_ema"),
    )
    switch(group, "--allow-head-mismatch", "MODEL.ALLOW_HEAD_MISMATCH", "start a classifier head of other size afresh")
    setting(group, "--resume", "MODEL.RESUME", "continue a training checkpoint", metavar="FILE")

    group = parser.add_argument_group("training")
    setting(group, "--epochs", "TRAIN.EPOCHS", "number of epochs", type=int, metavar="N")
    setting(group, "--accumulation-steps", "TRAIN.ACCUMULATION_STEPS", "steps per update", type=int, metavar="N")
    setting(group, "--optim", "TRAIN.OPTIMIZER.NAME", "adamw, sgd or any optimizer of timm", metavar="NAME")
    setting(group, "--model_ema", "EMA.ENABLE", "keep averaged weights", type=_flag, metavar="BOOL")
    setting(group, "--model_ema_decay", "EMA.DECAY", "decay of the average", type=float, metavar="F")
    setting(group, "--model_ema_force_cpu", "EMA.FORCE_CPU", "keep it in CPU memory", type=_flag, metavar="BOOL")

    group = parser.add_argument_group("machine")
    setting(group, "--device", "DEVICE", "auto takes a GPU where there is one", choices=("auto", "cpu", "cuda"))
    switch(group, "--disable_amp", "AMP_ENABLE", "compute in float32", value=False)
    setting(group, "--amp-dtype", "AMP_DTYPE", "type of mixed precision", choices=("auto", "float16", "bfloat16"))
    switch(group, "--use-checkpoint", "TRAIN.USE_CHECKPOINT", "recompute activations to save memory")
    setting(group, "--memory_limit_rate", "MEMORY_LIMIT_RATE", "share of GPU memory to use", type=float, metavar="F")
    switch(group, "--fused_layernorm", "FUSED_LAYERNORM", "accepted, without effect, as in the published trainer")

    group = parser.add_argument_group("output")
    setting(group, "--output", "OUTPUT", "root of run folders, default 'output'", metavar="DIR")
    setting(group, "--tag", "TAG", "name of the run: OUTPUT/MODEL.NAME/TAG; the same tag resumes", metavar="NAME")

    group = parser.add_argument_group("what a run tells of itself")
    setting(group, "--wandb", "WANDB", "send the figures to this project of Weights & Biases", metavar="PROJECT")
    setting(group, "--mlflow", "MLFLOW", "send the figures to this experiment of MLflow", metavar="EXPERIMENT")
    setting(
        group, "--profile", "PROFILE", "trace so many training steps (5)", type=int, nargs="?", const=5, metavar="STEPS"
    )
    switch(group, "--no-report", "REPORT", "no confusion matrix, class table, worst predictions, model card", False)

    group = parser.add_argument_group("instead of training")
    switch(group, "--eval", "EVAL_MODE", "evaluate the weights of --pretrained, --resume or the run folder")
    switch(group, "--throughput", "THROUGHPUT_MODE", "measure images per second")
    return parser
