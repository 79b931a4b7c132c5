"""The tables of the recipes, from the files of configs/classification as the trainer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from classification.config import as_plain, load_config
from docs.generate.markdown import code, table
from docs.generate.meta_models import parameters
from vmamba.models.from_config import model_from_config

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "classification"
# The trainer takes the number of classes from the data.
CLASSES = {"imagenet": 1000, "digits": 10, "fashion_mnist": 10}
# What describes the network is no training setting.
NETWORK = ("MODEL.", "BASE")


def networks() -> str:
    """Return the table of the recipes: what each trains, with its parameters counted."""
    rows = []
    for path, config in _recipes():
        vssm, data = config.MODEL.VSSM, config.DATA
        with torch.device("meta"):
            count = parameters(model_from_config(config, num_classes=CLASSES[data.DATASET]))
        rows.append(
            [
                code(path.stem),
                code(config.MODEL.NAME),
                data.DATASET,
                data.IMG_SIZE,
                _listed(vssm.EMBED_DIM),
                _listed(vssm.DEPTHS),
                code(vssm.SSM_FORWARDTYPE),
                config.MODEL.DROP_PATH_RATE,
                f"{count:,}",
            ]
        )
    header = ["file", "name", "data", "size", "width", "blocks", "forward_type", "drop path", "parameters"]
    return table(header, rows)


def settings() -> str:
    """Return the table of the training settings of each recipe that differ from the defaults."""
    plain = _flat(load_config()[0])
    rows = []
    for path, config in _recipes():
        changed = [
            f"`{key}` {_listed(value)}"
            for key, value in _flat(config).items()
            if value != plain[key] and not key.startswith(NETWORK)
        ]
        rows.append([code(path.stem), ", ".join(changed) or "none"])
    return table(["file", "settings that are not the default"], rows)


def defaults() -> str:
    """Return the table of the defaults that decide a training run."""
    keys = """
        DATA.BATCH_SIZE DATA.IMG_SIZE DATA.INTERPOLATION TRAIN.EPOCHS TRAIN.WARMUP_EPOCHS TRAIN.BASE_LR TRAIN.WARMUP_LR
        TRAIN.MIN_LR TRAIN.LR_SCHEDULER.NAME TRAIN.OPTIMIZER.NAME TRAIN.OPTIMIZER.BETAS TRAIN.OPTIMIZER.EPS
        TRAIN.WEIGHT_DECAY TRAIN.DECAY_GROUPS TRAIN.CLIP_GRAD AUG.AUTO_AUGMENT AUG.COLOR_JITTER AUG.REPROB AUG.MIXUP
        AUG.CUTMIX MODEL.LABEL_SMOOTHING EMA.DECAY AMP_DTYPE TEST.CROP SEED
    """.split()
    flat = _flat(load_config()[0])
    return table(["key", "default"], ([code(key), _listed(flat[key])] for key in keys))


def _recipes() -> list[tuple[Path, CfgNode]]:
    return [(path, load_config(path)[0]) for path in sorted(FOLDER.glob("*.yaml"))]


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in as_plain(node).items() if not prefix else node.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


if __name__ == "__main__":
    print(networks(), settings(), defaults(), sep="\n")
