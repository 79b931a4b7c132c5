"""The command line: the published flags and ours, each of which sets one configuration key."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from yacs.config import CfgNode

from classification.checks import check_values
from classification.clipping import CLIP_MODES
from classification.config import as_yaml, load_config, value_of
from classification.defaults import defaults
from classification.distillation import DISTILLATIONS
from classification.parallel import PARALLEL
from classification.schedule import SCHEDULES
from vmamba.command_line import Parser

PROGRAM = "python -m classification"


def parse(argv: Sequence[str] | None = None, program: str = PROGRAM) -> tuple[CfgNode, set[str]]:
    """Return the checked configuration that the command line asks for, and the set of keys that somebody stated.

    `program` is what the help calls the command. ``--print-config`` prints the configuration as yaml, from the first
    process, and exits.
    """
    options = command_line(program).parse(argv)
    flags: dict[str, Any] = {key: value for key, value in vars(options).items() if key.isupper() and value is not None}
    if options.finetune:
        flags |= {"MODEL.PRETRAINED": options.finetune, "MODEL.ALLOW_HEAD_MISMATCH": True}
    config, stated = load_config(options.cfg, options.opts or (), flags)
    if config.AMP_OPT_LEVEL == "O0":
        config.AMP_ENABLE = False
    check_values(config)
    if options.print_config:
        if os.environ.get("RANK", "0") == "0":
            print(as_yaml(config), end="")
        raise SystemExit(0)
    return config, stated


def _flag(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")


def command_line(program: str = PROGRAM) -> Parser:
    """Return the parser of all flags; the name of a value in capitals is the key that it sets."""
    parser = Parser(
        prog=program,
        usage="%(prog)s --cfg FILE [flags]",
        description="Train or evaluate a network; torchrun in the place of python for several processes.",
    )
    known = defaults()

    def switch(group, name: str, key: str, help: str, value: bool = True) -> None:
        group.add_argument(name, dest=key, action="store_const", const=value, help=f"{help} [{key}]")

    def setting(group, name: str, key: str, help: str, **more) -> None:
        default = value_of(known, key)
        shown = f" = {default}" if default not in ("", [], {}) else ""
        group.add_argument(name, dest=key, help=f"{help} [{key}{shown}]", **more)

    group = parser.add_argument_group("configuration")
    group.add_argument("--cfg", default="", metavar="FILE", help="yaml of keys; its BASE files are merged first")
    group.add_argument("--opts", nargs="+", metavar="KEY VALUE", help="override keys; the flags below still win")
    group.add_argument("--print-config", action="store_true", help="print all keys with their values as yaml, and exit")

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
    setting(group, "--color-jitter", "AUG.COLOR_JITTER", "where there is no policy", type=float, metavar="F")
    setting(group, "--reprob", "AUG.REPROB", "probability of random erasing", type=float, metavar="F")
    setting(group, "--mixup", "AUG.MIXUP", "alpha of mixup", type=float, metavar="F")
    setting(group, "--cutmix", "AUG.CUTMIX", "alpha of cutmix", type=float, metavar="F")
    setting(group, "--mixup-off-epoch", "AUG.MIXUP_OFF_EPOCH", "from there on mix no more", type=int, metavar="N")

    group = parser.add_argument_group("weights")
    setting(group, "--pretrained", "MODEL.PRETRAINED", "start from these weights", metavar="FILE|URL")
    group.add_argument("--finetune", metavar="FILE|URL", help="--pretrained with --allow-head-mismatch")
    setting(
        group,
        "--pretrained-entry",
        "MODEL.PRETRAINED_ENTRY",
        "entry of the file that fills the model (auto: 'model', and 'model_ema' fills the average)",
        choices=("auto", "model", "model_ema"),
    )
    switch(group, "--allow-head-mismatch", "MODEL.ALLOW_HEAD_MISMATCH", "start a classifier head of other size afresh")
    setting(group, "--resume", "MODEL.RESUME", "continue a training checkpoint", metavar="FILE|URL")

    group = parser.add_argument_group("network")
    setting(group, "--drop-path", "MODEL.DROP_PATH_RATE", "stochastic depth of the last block", type=float, metavar="F")
    setting(group, "--drop", "MODEL.DROP_RATE", "dropout before the head", type=float, metavar="F")
    switch(group, "--head-norm", "MODEL.HEAD_NORM", "batch norm before the head, as in MAE's linear probe")
    switch(group, "--linear-probe", "TRAIN.LINEAR_PROBE", "train the head alone")
    setting(group, "--freeze", "TRAIN.FREEZE", "parts that do not learn, e.g. patch_embed", nargs="+", metavar="NAME")
    switch(group, "--use-checkpoint", "TRAIN.USE_CHECKPOINT", "recompute activations to save memory")
    setting(group, "--compile", "TRAIN.COMPILE", "torch.compile", nargs="?", const="inductor", metavar="BACKEND")
    switch(group, "--channels-last", "TRAIN.CHANNELS_LAST", "channels-last memory layout")
    switch(group, "--sync-bn", "TRAIN.SYNC_BN", "batch norms share their statistics over GPUs")

    group = parser.add_argument_group("training")
    setting(group, "--epochs", "TRAIN.EPOCHS", "number of epochs", type=int, metavar="N")
    setting(group, "--accumulation-steps", "TRAIN.ACCUMULATION_STEPS", "steps per update", type=int, metavar="N")
    setting(group, "--optim", "TRAIN.OPTIMIZER.NAME", "adamw, sgd or any optimizer of timm", metavar="NAME")
    switch(group, "--fused-optim", "TRAIN.OPTIMIZER.FUSED", "PyTorch's fused adamw or sgd")
    setting(group, "--lr", "TRAIN.BASE_LR", "rate per --lr-base-batch images", type=float, metavar="F")
    setting(group, "--lr-base-batch", "TRAIN.LR_BASE_BATCH", "0: rates are not scaled", type=int, metavar="N")
    setting(group, "--min-lr", "TRAIN.MIN_LR", "last rate, scaled like --lr", type=float, metavar="F")
    setting(group, "--warmup-lr", "TRAIN.WARMUP_LR", "first rate, scaled like --lr", type=float, metavar="F")
    setting(group, "--warmup-epochs", "TRAIN.WARMUP_EPOCHS", "length of the warm-up", type=int, metavar="N")
    setting(group, "--cooldown-epochs", "TRAIN.LR_SCHEDULER.COOLDOWN_EPOCHS", "at --min-lr", type=int, metavar="N")
    setting(group, "--sched", "TRAIN.LR_SCHEDULER.NAME", "course of the learning rate", choices=SCHEDULES)
    setting(group, "--weight-decay", "TRAIN.WEIGHT_DECAY", "of the parameters that have it", type=float, metavar="F")
    setting(group, "--layer-decay", "TRAIN.LAYER_DECAY", "rate of a layer over the next one's", type=float, metavar="F")
    setting(group, "--clip-grad", "TRAIN.CLIP_GRAD", "limit of the gradient; 0 is none", type=float, metavar="F")
    setting(group, "--clip-mode", "TRAIN.CLIP_MODE", "what the limit is of", choices=CLIP_MODES)
    setting(group, "--loss", "TRAIN.LOSS.NAME", "loss of the labels", choices=("cross_entropy", "bce"))
    switch(group, "--cosub", "TRAIN.COSUB", "co-training of two submodels, DeiT's cosub; with --loss bce")
    switch(group, "--no-train-mode", "TRAIN.TRAIN_MODE", "train without dropout and drop path", value=False)
    setting(group, "--smoothing", "MODEL.LABEL_SMOOTHING", "label smoothing", type=float, metavar="F")
    setting(group, "--seed", "SEED", "seed of the run", type=int, metavar="N")
    setting(group, "--model_ema", "EMA.ENABLE", "keep averaged weights", type=_flag, metavar="BOOL")
    setting(group, "--model_ema_decay", "EMA.DECAY", "decay of the average", type=float, metavar="F")
    setting(group, "--model_ema_force_cpu", "EMA.FORCE_CPU", "keep it in CPU memory", type=_flag, metavar="BOOL")

    group = parser.add_argument_group("distillation")
    setting(group, "--distillation-type", "DISTILL.TYPE", "what the teacher gives", choices=DISTILLATIONS)
    setting(group, "--teacher-model", "DISTILL.TEACHER", "teacher, a model of timm or of this package", metavar="NAME")
    setting(group, "--teacher-path", "DISTILL.TEACHER_PATH", "weights; alone: a checkpoint of ours", metavar="FILE")
    setting(group, "--distillation-alpha", "DISTILL.ALPHA", "teacher's share of the loss", type=float, metavar="F")
    setting(group, "--distillation-tau", "DISTILL.TAU", "temperature of the soft loss", type=float, metavar="F")

    group = parser.add_argument_group("machine")
    setting(group, "--device", "DEVICE", "auto takes a GPU where there is one", choices=("auto", "cpu", "cuda"))
    setting(group, "--parallel", "TRAIN.PARALLEL", "replicate or shard over the processes", choices=PARALLEL)
    switch(group, "--disable_amp", "AMP_ENABLE", "compute in float32", value=False)
    setting(group, "--amp-dtype", "AMP_DTYPE", "type of mixed precision", choices=("auto", "float16", "bfloat16"))
    setting(group, "--memory_limit_rate", "MEMORY_LIMIT_RATE", "share of GPU memory to use", type=float, metavar="F")

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
    switch(group, "--traincost", "TRAINCOST_MODE", "measure images per second and memory of training steps")
    switch(group, "--dry-run", "DRY_RUN", "build all, take one step, write and read a checkpoint, print the plan")

    group = parser.add_argument_group("deprecated: accepted with a warning")
    setting(group, "--amp-opt-level", "AMP_OPT_LEVEL", "apex level", choices=("O0", "O1", "O2"))
    switch(group, "--enable_amp", "ENABLE_AMP", "mixed precision is on by default")
    switch(group, "--fused_layernorm", "FUSED_LAYERNORM", "without effect, as in the published trainer")
    switch(group, "--fused_window_process", "FUSED_WINDOW_PROCESS", "of Swin's trainer")
    setting(group, "--local_rank", "LOCAL_RANK", "torchrun tells it", type=int, metavar="N")
    return parser
