"""The tables of the recipes, from the files under configs as the trainer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from classification.config import as_plain, load_config
from docs.generate.markdown import code, table
from docs.generate.meta_models import parameters
from vmamba.models.from_config import model_from_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDER = CONFIGS / "classification"
# The trainer takes the number of classes from the data.
CLASSES = {"imagenet": 1000, "digits": 10, "fashion_mnist": 10}
# What describes the network is no training setting.
NETWORK = ("MODEL.", "BASE")


def networks() -> str:
    """Return the table of the recipes of VMamba: what each trains, with its parameters counted."""
    rows = []
    for path, config in _recipes():
        if config.MODEL.TYPE != "vssm":
            continue
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


def plain_networks() -> str:
    """Return the table of the recipes of Vim and FastVim, those of configs/pretraining among them."""
    rows = []
    for path, config in [*_recipes(), *_recipes(CONFIGS / "pretraining")]:
        if config.MODEL.TYPE != "timm":
            continue
        data = config.DATA
        config.MODEL.NUM_CLASSES = CLASSES[data.DATASET]
        with torch.device("meta"):
            network: Any = model_from_config(config)
        rows.append(
            [
                code(f"{path.parent.name}/{path.stem}"),
                code(config.MODEL.ARCH or config.MODEL.NAME),
                data.DATASET,
                data.IMG_SIZE,
                network.embed_dim,
                len(network.layers),
                config.MODEL.DROP_PATH_RATE,
                f"{parameters(network):,}",
            ]
        )
    return table(["file", "network", "data", "size", "width", "blocks", "drop path", "parameters"], rows)


def settings() -> str:
    """Return the table of the training settings of each recipe that differ from the defaults."""
    plain = _flat(load_config()[0])
    rows = []
    for path, config in [*_recipes(), *_recipes(CONFIGS / "pretraining")]:
        changed = [
            f"`{key}` {_listed(value)}"
            for key, value in _flat(config).items()
            if value != plain.get(key) and not key.startswith(NETWORK)
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


def _recipes(folder: Path = FOLDER) -> list[tuple[Path, CfgNode]]:
    return [(path, load_config(path)[0]) for path in sorted(folder.glob("*.yaml"))]


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in as_plain(node).items() if not prefix else node.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


if __name__ == "__main__":
    print(networks(), plain_networks(), settings(), defaults(), sep="\n")
