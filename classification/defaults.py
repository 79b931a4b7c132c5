"""Every configuration key with its default.

The published VMamba trainer's keys, by their names and values, and ours, marked so. ``docs/training.md`` explains them.
"""

from __future__ import annotations

from yacs.config import CfgNode

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]

_DEFAULTS: dict = {
    "BASE": [""],
    "DATA": {
        "BATCH_SIZE": 128,
        "DATA_PATH": "",
        "DATASET": "imagenet",
        "IMG_SIZE": 224,
        "INTERPOLATION": "bicubic",
        "ZIP_MODE": False,
        "CACHE_MODE": "part",
        "PIN_MEMORY": True,
        "NUM_WORKERS": 8,
        "MASK_PATCH_SIZE": 32,
        "MASK_RATIO": 0.6,
        # ours
        "MEAN": IMAGENET_MEAN,
        "STD": IMAGENET_STD,
        "TRAIN_SPLIT": "train",
        "VAL_SPLIT": "val",
        "INPUT_KEY": "",
        "TARGET_KEY": "",
        "DOWNLOAD": False,
        "MAX_BAD": 100,
    },
    "MODEL": {
        "TYPE": "vssm",
        "NAME": "vssm_tiny_224",
        "PRETRAINED": "",
        "RESUME": "",
        "NUM_CLASSES": 1000,
        "DROP_RATE": 0.0,
        "DROP_PATH_RATE": 0.1,
        "LABEL_SMOOTHING": 0.1,
        "MMCKPT": False,
        "VSSM": {
            "PATCH_SIZE": 4,
            "IN_CHANS": 3,
            "DEPTHS": [2, 2, 9, 2],
            "EMBED_DIM": 96,
            "SSM_D_STATE": 16,
            "SSM_RATIO": 2.0,
            "SSM_RANK_RATIO": 2.0,
            "SSM_DT_RANK": "auto",
            "SSM_ACT_LAYER": "silu",
            "SSM_CONV": 3,
            "SSM_CONV_BIAS": True,
            "SSM_DROP_RATE": 0.0,
            "SSM_INIT": "v0",
            "SSM_FORWARDTYPE": "v2",
            "MLP_RATIO": 4.0,
            "MLP_ACT_LAYER": "gelu",
            "MLP_DROP_RATE": 0.0,
            "PATCH_NORM": True,
            "NORM_LAYER": "ln",
            "DOWNSAMPLE": "v2",
            "PATCHEMBED": "v2",
            "POSEMBED": False,
            "GMLP": False,
        },
        # ours
        "TIMM": {},
        "PRETRAINED_ENTRY": "auto",
        "ALLOW_HEAD_MISMATCH": False,
        "HEAD_NORM": False,
    },
    "TRAIN": {
        "START_EPOCH": 0,
        "EPOCHS": 300,
        "WARMUP_EPOCHS": 20,
        "WEIGHT_DECAY": 0.05,
        "BASE_LR": 5e-4,
        "WARMUP_LR": 5e-7,
        "MIN_LR": 5e-6,
        "CLIP_GRAD": 5.0,
        "AUTO_RESUME": True,
        "ACCUMULATION_STEPS": 1,
        "USE_CHECKPOINT": False,
        "LR_SCHEDULER": {
            "NAME": "cosine",
            "DECAY_EPOCHS": 30,
            "DECAY_RATE": 0.1,
            "WARMUP_PREFIX": True,
            "GAMMA": 0.1,
            "MULTISTEPS": [],
            # ours
            "COOLDOWN_EPOCHS": 0,
            "PATIENCE_EPOCHS": 10,
            "ARGS": {},
        },
        # the last two are ours
        "OPTIMIZER": {
            "NAME": "adamw",
            "EPS": 1e-8,
            "BETAS": (0.9, 0.999),
            "MOMENTUM": 0.9,
            "FUSED": False,
            "ARGS": {},
        },
        "LAYER_DECAY": 1.0,
        "MOE": {"SAVE_MASTER": False},
        # ours
        "DECAY_GROUPS": "published",
        "WEIGHT_DECAY_END": None,
        "MAX_NONFINITE": 10,
        "LR_BASE_BATCH": 512,
        "LAYER_DECAY_MIN_SCALE": 0.0,
        "CLIP_MODE": "norm",
        "LOSS": {"NAME": "cross_entropy", "BCE_THRESHOLD": None, "BCE_SUM": False, "BCE_POSITIVE_WEIGHT": None},
        "FREEZE": [],
        "LINEAR_PROBE": False,
        "DROP_PATH_SCHEDULE": {"NAME": "constant", "EPOCHS": 0},
        "PARALLEL": "ddp",
        "SYNC_BN": False,
        "COMPILE": "",
        "CHANNELS_LAST": False,
    },
    # ours
    "DISTILL": {"TYPE": "none", "TEACHER": "", "TEACHER_PATH": "", "TEACHER_ARGS": {}, "ALPHA": 0.5, "TAU": 1.0},
    "AUG": {
        "COLOR_JITTER": 0.4,
        "AUTO_AUGMENT": "rand-m9-mstd0.5-inc1",
        "REPROB": 0.25,
        "REMODE": "pixel",
        "RECOUNT": 1,
        "MIXUP": 0.8,
        "CUTMIX": 1.0,
        "CUTMIX_MINMAX": None,
        "MIXUP_PROB": 1.0,
        "MIXUP_SWITCH_PROB": 0.5,
        "MIXUP_MODE": "batch",
        # ours
        "ENABLE": True,
        "REPEATS": 1,
        "CROP_MODE": "rrc",
        "COLOR_JITTER_PROB": None,
        "GRAYSCALE_PROB": 0.0,
        "BLUR_PROB": 0.0,
        "VFLIP": 0.0,
        "MIXUP_OFF_EPOCH": 0,
        "HFLIP": 0.5,
        "SCALE": (0.08, 1.0),
        "RATIO": (0.75, 4.0 / 3.0),
        "CROP_PADDING": 4,
        "CELLS": {
            "PAD_TO": 256,
            "TURN_PROB": 0.5,
            "DEFOCUS_PROB": 0.5,
            "HOLES_PROB": 0.5,
            "HOLES": 10,
            "HOLE_SIZE": 10,
        },
    },
    "TEST": {
        "CROP": True,
        "SEQUENTIAL": False,
        "SHUFFLE": False,
        # ours
        "CROP_RATIO": 224 / 256,
    },
    # ours; the published trainer has these three as flags only
    "EMA": {
        "ENABLE": True,
        "DECAY": 0.9999,
        "FORCE_CPU": False,
        "WARMUP": False,
    },
    "AMP_ENABLE": True,
    "AMP_DTYPE": "auto",
    "ENABLE_AMP": False,
    "AMP_OPT_LEVEL": "",
    "OUTPUT": "",
    "TAG": "default",
    "SAVE_FREQ": 1,
    "PRINT_FREQ": 10,
    "SEED": 0,
    "EVAL_MODE": False,
    "THROUGHPUT_MODE": False,
    "TRAINCOST_MODE": False,
    "FUSED_LAYERNORM": False,
    # of Swin's trainer, which this one's descends from
    "FUSED_WINDOW_PROCESS": False,
    "LOCAL_RANK": 0,
    # ours
    "DRY_RUN": False,
    "DEVICE": "auto",
    "MEMORY_LIMIT_RATE": -1.0,
    "KEEP_CHECKPOINTS": 3,
    "SAVE_STEPS": 0,
    "TIMEOUT": 1800.0,
    "TENSORBOARD": True,
    "WANDB": "",
    "MLFLOW": "",
    "REPORT": True,
    "PROFILE": 0,
    "CARD": {"LICENSE": "", "DATA_LICENSE": ""},
}

# Keys that are accepted and warned of, and why; all but AMP_OPT_LEVEL do nothing.
DEPRECATED: dict[str, str] = {
    **dict.fromkeys(
        ("DATA.MASK_PATCH_SIZE", "DATA.MASK_RATIO", "MODEL.MMCKPT", "TRAIN.MOE.SAVE_MASTER", "FUSED_LAYERNORM"),
        "no part of the published trainer or of this one reads it",
    ),
    "MODEL.VSSM.SSM_RANK_RATIO": "the published model ignores it; MODEL.VSSM.SSM_DT_RANK sets the rank",
    "FUSED_WINDOW_PROCESS": "it is of Swin's window attention, which no network here has",
    "ENABLE_AMP": "AMP_ENABLE is the key, and on by default",
    "AMP_OPT_LEVEL": "O0 does what --disable_amp does, the other levels nothing; --amp-dtype chooses the type",
    "LOCAL_RANK": "torchrun's environment tells it",
    **dict.fromkeys(("TEST.SEQUENTIAL", "TEST.SHUFFLE"), "evaluation counts every image once, in any order"),
}
# Keys that take more than the type of their default.
ALSO_TAKES: dict[str, tuple[type, ...]] = {
    "BASE": (str,),
    "DATA.IMG_SIZE": (list,),
    "MODEL.VSSM.EMBED_DIM": (list,),
    "MODEL.VSSM.SSM_DT_RANK": (int,),
    "AUG.CUTMIX_MINMAX": (list,),
    "AUG.COLOR_JITTER": (list,),
    "AUG.COLOR_JITTER_PROB": (float,),
    "TRAIN.CLIP_GRAD": (type(None),),
    "TRAIN.WEIGHT_DECAY_END": (float,),
    "TRAIN.LOSS.BCE_THRESHOLD": (float,),
    "TRAIN.LOSS.BCE_POSITIVE_WEIGHT": (float,),
}
# A node of free names: they are passed on as they are.
FREE_NODES = ("MODEL.TIMM", "TRAIN.OPTIMIZER.ARGS", "TRAIN.LR_SCHEDULER.ARGS", "DISTILL.TEACHER_ARGS")


def defaults() -> CfgNode:
    """Return a fresh configuration with the default of every key."""
    return CfgNode(_DEFAULTS)


def known_keys(node: dict | None = None, prefix: str = "") -> list[str]:
    """Return the dotted names of all keys."""
    names: list[str] = []
    for key, value in (_DEFAULTS if node is None else node).items():
        names += known_keys(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [prefix + key]
    return names
