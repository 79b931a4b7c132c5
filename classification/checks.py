"""Values that make no sense, and settings that a path ignores."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from yacs.config import CfgNode

from classification.clipping import CLIP_MODES
from classification.config import value_of
from classification.data_checks import DATA_IGNORED, check_data
from classification.defaults import DEPRECATED, defaults
from classification.distillation import DISTILLATIONS
from classification.drop_path import DROP_PATH_SCHEDULES
from classification.jump_cp import is_cells
from classification.optim import DECAY_GROUPS
from classification.parallel import PARALLEL
from classification.schedule import SCHEDULES
from classification.sources import check_dataset
from vmamba.errors import UserError, closest

_CHOICES = {
    "DATA.INTERPOLATION": ("bicubic", "random", "bilinear", "lanczos", "hamming"),
    "DATA.CACHE_MODE": ("no", "full", "part"),
    "MODEL.TYPE": ("vssm", "timm"),
    "MODEL.PRETRAINED_ENTRY": ("auto", "model", "model_ema"),
    "TRAIN.LR_SCHEDULER.NAME": SCHEDULES,
    "TRAIN.DECAY_GROUPS": DECAY_GROUPS,
    "TRAIN.CLIP_MODE": CLIP_MODES,
    "TRAIN.LOSS.NAME": ("cross_entropy", "bce"),
    "TRAIN.DROP_PATH_SCHEDULE.NAME": DROP_PATH_SCHEDULES,
    "TRAIN.PARALLEL": PARALLEL,
    "DISTILL.TYPE": DISTILLATIONS,
    "AUG.REMODE": ("pixel", "rand", "const"),
    "AUG.MIXUP_MODE": ("batch", "pair", "elem"),
    "AMP_DTYPE": ("auto", "float16", "bfloat16"),
    "DEVICE": ("auto", "cpu", "cuda"),
}
_AT_LEAST = {
    "DATA.BATCH_SIZE": 1,
    "DATA.NUM_WORKERS": 0,
    "MODEL.NUM_CLASSES": 1,
    "MODEL.VSSM.PATCH_SIZE": 1,
    "MODEL.VSSM.SSM_D_STATE": 1,
    "TRAIN.START_EPOCH": 0,
    "TRAIN.EPOCHS": 1,
    "TRAIN.WARMUP_EPOCHS": 0,
    "TRAIN.ACCUMULATION_STEPS": 1,
    "TRAIN.BASE_LR": 0,
    "TRAIN.WARMUP_LR": 0,
    "TRAIN.MIN_LR": 0,
    "TRAIN.WEIGHT_DECAY": 0,
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": 1,
    "TRAIN.LR_SCHEDULER.COOLDOWN_EPOCHS": 0,
    "TRAIN.LR_SCHEDULER.PATIENCE_EPOCHS": 0,
    "TRAIN.LR_BASE_BATCH": 0,
    "TRAIN.LAYER_DECAY_BLOCKS": 1,
    "TRAIN.DROP_PATH_SCHEDULE.EPOCHS": 0,
    "TRAIN.MAX_NONFINITE": 1,
    "AUG.CELLS.PAD_TO": 1,
    "AUG.CELLS.HOLES": 0,
    "AUG.CELLS.HOLE_SIZE": 1,
    "AUG.MIXUP": 0,
    "AUG.CUTMIX": 0,
    "AUG.MIXUP_OFF_EPOCH": 0,
    "AUG.CROP_PADDING": 0,
    "SEED": 0,
    "SAVE_FREQ": 1,
    "PRINT_FREQ": 1,
    "KEEP_CHECKPOINTS": 0,
    "PROFILE": 0,
    "SAVE_STEPS": 0,
    "TIMEOUT": 1,
}
_AT_MOST = {"MODEL.VSSM.SSM_D_STATE": 256}
_SHARES = (
    "MODEL.DROP_RATE",
    "MODEL.DROP_PATH_RATE",
    "MODEL.LABEL_SMOOTHING",
    "AUG.REPROB",
    "AUG.MIXUP_PROB",
    "AUG.MIXUP_SWITCH_PROB",
    "AUG.HFLIP",
    "AUG.CELLS.TURN_PROB",
    "AUG.CELLS.DEFOCUS_PROB",
    "AUG.CELLS.HOLES_PROB",
    "EMA.DECAY",
    "DISTILL.ALPHA",
    "TRAIN.LAYER_DECAY_MIN_SCALE",
)
_ABOVE_ZERO = ("TRAIN.LAYER_DECAY", "DISTILL.TAU")
# timm's automatic policies, by the part of their name before the first dash
_POLICIES = ("rand", "augmix", "3a", "original", "originalr", "v0", "v0r", "none")


class _Items(NamedTuple):
    """What a list holds: items of `kind` for which `fits` is true, as `needs` says; `length` None is any."""

    kind: type
    length: int | None
    fits: Callable[[float], bool]
    needs: str


_LISTS = {
    "DATA.MEAN": _Items(float, None, lambda x: -inf < x < inf, "that are finite"),
    "DATA.STD": _Items(float, None, lambda x: 0 < x < inf, "above 0"),
    "MODEL.VSSM.DEPTHS": _Items(int, None, lambda x: x >= 1, "at least 1"),
    "MODEL.VSSM.EMBED_DIM": _Items(int, None, lambda x: x >= 1, "at least 1"),
    "TRAIN.LR_SCHEDULER.MULTISTEPS": _Items(int, None, lambda x: x >= 1, "at least 1"),
    "TRAIN.OPTIMIZER.BETAS": _Items(float, 2, lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "AUG.SCALE": _Items(float, 2, lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "AUG.RATIO": _Items(float, 2, lambda x: 0 < x < inf, "above 0"),
    "AUG.CUTMIX_MINMAX": _Items(float, 2, lambda x: 0 <= x <= 1, "between 0 and 1"),
}
_RISING = ("AUG.SCALE", "AUG.RATIO", "AUG.CUTMIX_MINMAX")


def _unless_schedule(*names: str) -> Callable[[CfgNode], bool]:
    return lambda config: config.TRAIN.LR_SCHEDULER.NAME not in names


# (true when it applies, the keys, why they do nothing)
_IGNORED: tuple[tuple[Callable[[CfgNode], bool], tuple[str, ...], str], ...] = (
    (lambda c: not c.DATA.ZIP_MODE, ("DATA.CACHE_MODE",), "it belongs to zip mode"),
    (lambda c: c.MODEL.TYPE == "vssm", ("MODEL.TIMM", "MODEL.ARCH"), "MODEL.TYPE is vssm"),
    (lambda c: c.MODEL.TYPE == "timm", ("MODEL.VSSM.",), "MODEL.TYPE is timm; its arguments are under MODEL.TIMM"),
    (
        lambda c: not (c.MODEL.PRETRAINED or c.EVAL_MODE),
        ("MODEL.PRETRAINED_ENTRY", "MODEL.ALLOW_HEAD_MISMATCH"),
        "there is no MODEL.PRETRAINED",
    ),
    (lambda c: not c.EMA.ENABLE, ("EMA.DECAY", "EMA.FORCE_CPU", "EMA.WARMUP"), "EMA.ENABLE is off"),
    (lambda c: not c.AMP_ENABLE, ("AMP_DTYPE",), "AMP_ENABLE is off"),
    (lambda c: c.TRAIN.OPTIMIZER.NAME == "adamw", ("TRAIN.OPTIMIZER.MOMENTUM",), "adamw has betas instead"),
    (
        lambda c: c.TRAIN.OPTIMIZER.NAME not in ("adamw", "sgd"),
        ("TRAIN.OPTIMIZER.BETAS", "TRAIN.OPTIMIZER.EPS", "TRAIN.OPTIMIZER.FUSED"),
        "it is for adamw and sgd; another optimizer's arguments stand in TRAIN.OPTIMIZER.ARGS",
    ),
    (
        lambda c: c.TRAIN.OPTIMIZER.NAME == "sgd",
        ("TRAIN.OPTIMIZER.BETAS", "TRAIN.OPTIMIZER.EPS"),
        "sgd has a momentum instead",
    ),
    (_unless_schedule("step"), ("TRAIN.LR_SCHEDULER.DECAY_EPOCHS",), "TRAIN.LR_SCHEDULER.NAME is not step"),
    (
        _unless_schedule("step", "plateau"),
        ("TRAIN.LR_SCHEDULER.DECAY_RATE",),
        "TRAIN.LR_SCHEDULER.NAME is neither step nor plateau",
    ),
    (_unless_schedule("plateau"), ("TRAIN.LR_SCHEDULER.PATIENCE_EPOCHS",), "TRAIN.LR_SCHEDULER.NAME is not plateau"),
    (
        _unless_schedule("multistep"),
        ("TRAIN.LR_SCHEDULER.MULTISTEPS", "TRAIN.LR_SCHEDULER.GAMMA"),
        "TRAIN.LR_SCHEDULER.NAME is not multistep",
    ),
    (
        _unless_schedule("cosine", "tanh", "poly", "linear", "plateau"),
        ("TRAIN.MIN_LR",),
        "only cosine, tanh, poly, linear and plateau go down to it",
    ),
    (
        _unless_schedule("cosine", "tanh", "poly", "linear"),
        ("TRAIN.LR_SCHEDULER.COOLDOWN_EPOCHS",),
        "only cosine, tanh, poly and linear have an end",
    ),
    (
        _unless_schedule("cosine", "tanh", "poly", "step"),
        ("TRAIN.LR_SCHEDULER.WARMUP_PREFIX",),
        "the other schedules than cosine, tanh, poly and step count from the first update",
    ),
    (
        lambda c: c.TRAIN.LAYER_DECAY == 1,
        ("TRAIN.LAYER_DECAY_MIN_SCALE", "TRAIN.LAYER_DECAY_BLOCKS"),
        "TRAIN.LAYER_DECAY is 1",
    ),
    (lambda c: not c.TRAIN.CLIP_GRAD, ("TRAIN.CLIP_MODE",), "TRAIN.CLIP_GRAD is off"),
    (lambda c: c.TRAIN.LOSS.NAME != "bce", ("TRAIN.LOSS.",), "TRAIN.LOSS.NAME is not bce"),
    (
        lambda c: c.TRAIN.DROP_PATH_SCHEDULE.NAME == "constant",
        ("TRAIN.DROP_PATH_SCHEDULE.EPOCHS",),
        "TRAIN.DROP_PATH_SCHEDULE.NAME is constant",
    ),
    (lambda c: c.DISTILL.TYPE == "none", ("DISTILL.",), "DISTILL.TYPE is none"),
    (lambda c: c.DISTILL.TYPE == "hard", ("DISTILL.TAU",), "DISTILL.TYPE is hard"),
    (lambda c: not c.DISTILL.TEACHER, ("DISTILL.TEACHER_ARGS",), "there is no DISTILL.TEACHER"),
    (
        lambda c: not _mixes(c),
        ("AUG.MIXUP_PROB", "AUG.MIXUP_SWITCH_PROB", "AUG.MIXUP_MODE", "AUG.MIXUP_OFF_EPOCH"),
        "mixup and cutmix are off",
    ),
    (lambda c: c.AUG.REPROB == 0, ("AUG.REMODE", "AUG.RECOUNT"), "AUG.REPROB is 0"),
    *DATA_IGNORED,
    (
        lambda c: c.EVAL_MODE or c.THROUGHPUT_MODE or c.TRAINCOST_MODE or c.DRY_RUN,
        ("WANDB", "MLFLOW", "PROFILE"),
        "no run is trained",
    ),
    (
        lambda c: c.THROUGHPUT_MODE or c.TRAINCOST_MODE,
        ("TRAIN.COMPILE", "DISTILL.TYPE"),
        "the plain network is measured",
    ),
    (lambda c: not c.REPORT, ("CARD.LICENSE", "CARD.DATA_LICENSE"), "REPORT is off"),
)


def check_values(config: CfgNode) -> None:
    """Raise `UserError` for the first value that is out of range or does not go with another."""
    if config.DRY_RUN and (config.EVAL_MODE or config.THROUGHPUT_MODE or config.TRAINCOST_MODE):
        raise UserError("--dry-run rehearses a training; leave out --eval, --throughput and --traincost")
    for key, choices in _CHOICES.items():
        value = value_of(config, key)
        if value not in choices:
            raise UserError(f"{key} '{value}' is unknown; it is one of {', '.join(choices)}.{closest(value, choices)}")
    for key, least in _AT_LEAST.items():
        if value_of(config, key) < least:
            raise UserError(f"{key} must be at least {least}, not {value_of(config, key)}")
    for key, most in _AT_MOST.items():
        if value_of(config, key) > most:
            raise UserError(f"{key} must be at most {most}, not {value_of(config, key)}")
    for key in _ABOVE_ZERO:
        if not 0 < value_of(config, key) < inf:
            raise UserError(f"{key} must be above 0, not {value_of(config, key)}")
    for key in _SHARES:
        if not 0 <= value_of(config, key) <= 1:
            raise UserError(f"{key} must lie between 0 and 1, not {value_of(config, key)}")
    for key, items in _LISTS.items():
        _check_list(key, value_of(config, key), items)
    _check_policy(config.AUG.AUTO_AUGMENT)
    check_dataset(config.DATA.DATASET)
    _check_images(config)
    check_data(config)
    _check_schedule(config)


def ignored_settings(config: CfgNode, stated: set[str]) -> list[str]:
    """Return one line for each stated key that this configuration does not use, deprecated ones among them."""
    changed = [key for key in sorted(stated) if _differs(config, key)]
    lines = [f"{key} is deprecated: {DEPRECATED[key]}" for key in changed if key in DEPRECATED]
    for applies, keys, reason in _IGNORED:
        if applies(config):
            hits = [key for key in changed if any(key == k or key.startswith(k.rstrip(".") + ".") for k in keys)]
            lines += [f"{key} has no effect: {reason}" for key in hits]
    return lines


def overruled_by_resume(config: CfgNode, checkpoint: Path | None) -> list[str]:
    """Return one line for each setting that does nothing because the run continues from `checkpoint`."""
    if checkpoint is None:
        return []
    lines = []
    if config.MODEL.RESUME and Path(config.MODEL.RESUME) != checkpoint:
        lines.append(f"MODEL.RESUME has no effect: this run continues its own {checkpoint}")
    if config.MODEL.PRETRAINED:
        lines.append(f"MODEL.PRETRAINED has no effect: this run continues {checkpoint}")
    if config.TRAIN.START_EPOCH:
        lines.append(f"TRAIN.START_EPOCH has no effect: {checkpoint} says where to go on")
    return lines


def _check_list(key: str, value: Any, items: _Items) -> None:
    """Refuse a list (or, for a key that takes one, a single number) that holds something else than `items`."""
    if value is None:
        return
    entries = list(value) if isinstance(value, list | tuple) else [value]
    kinds = (int, float) if items.kind is float else (int,)
    if items.length is not None and len(entries) != items.length:
        raise UserError(f"{key} must hold {items.length} numbers, not {len(entries)}: {entries}")
    for entry in entries:
        if not isinstance(entry, kinds) or isinstance(entry, bool) or not items.fits(entry):
            noun = "whole numbers" if items.kind is int else "numbers"
            raise UserError(f"{key} takes only {noun} {items.needs}, not {entry!r}")
    if key in _RISING and entries[0] > entries[1]:
        raise UserError(f"{key} must be [low, high], not {entries}")


def _check_policy(policy: str) -> None:
    name = policy.partition("-")[0]
    if name not in _POLICIES:
        hint = closest(name, _POLICIES)
        raise UserError(f"AUG.AUTO_AUGMENT '{policy}' is unknown; it starts with one of {', '.join(_POLICIES)}.{hint}")


def _check_images(config: CfgNode) -> None:
    size = config.DATA.IMG_SIZE
    if isinstance(size, list) and (len(size) != 2 or not all(isinstance(s, int) for s in size)):
        raise UserError(f"DATA.IMG_SIZE must be one number or [height, width], not {size}")
    if min(size if isinstance(size, list) else [size]) < 1:
        raise UserError(f"DATA.IMG_SIZE must be at least 1, not {size}")
    channels = config.MODEL.VSSM.IN_CHANS if config.MODEL.TYPE == "vssm" else config.MODEL.TIMM.get("in_chans", 3)
    if channels not in (1, 3, 4) and not is_cells(config.DATA.DATASET):
        raise UserError(f"images have 1, 3 or 4 channels here, not {channels} (MODEL.VSSM.IN_CHANS)")
    for key in ("DATA.MEAN", "DATA.STD"):
        if len(value_of(config, key)) != channels:
            raise UserError(f"{key} {value_of(config, key)} needs one number for each of {channels} input channels")


def _check_schedule(config: CfgNode) -> None:
    train = config.TRAIN
    last = train.WEIGHT_DECAY_END
    if last is not None and not (0 <= last < inf and train.WEIGHT_DECAY > 0):
        raise UserError(
            f"TRAIN.WEIGHT_DECAY_END {last} is where a TRAIN.WEIGHT_DECAY above 0, here {train.WEIGHT_DECAY}, goes to; "
            "it is at least 0"
        )
    if train.WARMUP_EPOCHS > train.EPOCHS:
        raise UserError(
            f"TRAIN.WARMUP_EPOCHS {train.WARMUP_EPOCHS} is longer than TRAIN.EPOCHS {train.EPOCHS}; lower the warm-up"
        )
    if train.WARMUP_EPOCHS + train.LR_SCHEDULER.COOLDOWN_EPOCHS > train.EPOCHS:
        raise UserError(
            f"TRAIN.LR_SCHEDULER.COOLDOWN_EPOCHS {train.LR_SCHEDULER.COOLDOWN_EPOCHS} and TRAIN.WARMUP_EPOCHS "
            f"{train.WARMUP_EPOCHS} are more than TRAIN.EPOCHS {train.EPOCHS}"
        )
    if train.CLIP_GRAD is not None and not train.CLIP_GRAD >= 0:
        raise UserError(f"TRAIN.CLIP_GRAD must be at least 0, or None for no limit, not {train.CLIP_GRAD}")
    if train.COSUB and (train.LOSS.NAME != "bce" or config.DISTILL.TYPE != "none"):
        raise UserError("TRAIN.COSUB goes with TRAIN.LOSS.NAME bce and without a teacher; add --loss bce")
    if train.COSUB and config.TRAINCOST_MODE:
        raise UserError("--traincost measures a step of one network; leave TRAIN.COSUB out")
    if train.LR_SCHEDULER.NAME == "multistep" and not train.LR_SCHEDULER.MULTISTEPS:
        raise UserError("TRAIN.LR_SCHEDULER.MULTISTEPS is empty; name the epochs at which the learning rate falls")


def _mixes(config: CfgNode) -> bool:
    return config.AUG.MIXUP > 0 or config.AUG.CUTMIX > 0 or config.AUG.CUTMIX_MINMAX is not None


def _differs(config: CfgNode, key: str) -> bool:
    """True when the key no longer has its default value."""
    try:
        return value_of(config, key) != value_of(defaults(), key)
    except KeyError:
        return True
