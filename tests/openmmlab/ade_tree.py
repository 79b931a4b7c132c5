"""A small tree of ADE20K's layout, and what shrinks a segmentation configuration to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SEGMENTATION = sorted(path for path in CONFIGS.glob("segmentation/*/*.py") if path.parent.name != "_base_")
SMALL_BACKBONE = dict(
    type="MM_VSSM",
    dims=8,
    depths=(1, 1, 1, 1),
    ssm_d_state=1,
    ssm_ratio=1.0,
    norm_layer="ln2d",
    downsample_version="v3",
    patchembed_version="v2",
)


def write_ade_tree(root: Path, training: int = 4, validation: int = 2) -> Path:
    """Write odd-sized photographs and label maps 0 (nothing) to 150, as ADE20K has them, and return `root`."""
    rng = np.random.default_rng(0)
    for split, count in (("training", training), ("validation", validation)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            height, width = int(rng.integers(41, 60)), int(rng.integers(61, 90))
            labels = np.zeros((height, width), np.uint8)
            labels[4:, : width // 2] = 1 + i % 150
            labels[4:, width // 2 :] = 150
            image = rng.integers(0, 120, (height, width, 3)) + labels[..., None] % 100
            name = f"ADE_{split[:5]}_{i:08d}"
            Image.fromarray(image.astype(np.uint8)).save(root / "images" / split / f"{name}.jpg")
            Image.fromarray(labels).save(root / "annotations" / split / f"{name}.png")
    return root


def shrink(cfg: Any, root: Path) -> Any:
    """Return the configuration with a small network, small crops, two iterations and the tree at `root`."""
    published, widths = cfg.model.backbone, [8, 16, 32, 64]
    if published.type == "MM_VSSM":
        backbone = dict(SMALL_BACKBONE, drop_path_rate=published.drop_path_rate)
    else:
        small = dict(embed_dim=8, depth=4, out_indices=(0, 1, 2, 3), d_state=1, img_size=48, pretrained=None)
        backbone, widths = {**published, **small}, [8] * 4
    cfg.model.backbone = type(cfg.model)(backbone)
    cfg.model.decode_head.update(in_channels=widths, channels=16)
    cfg.model.auxiliary_head.update(in_channels=widths[2], channels=8)
    cfg.model.data_preprocessor.size = (48, 48)
    train = cfg.train_dataloader.dataset.pipeline
    train[2].scale, train[3].crop_size = (96, 64), (48, 48)
    for split in ("train", "val", "test"):
        loader = cfg[f"{split}_dataloader"]
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(root)
        if split != "train":
            loader.dataset.pipeline[1].scale = (128, 64)
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.default_hooks.logger.interval = 1
    return cfg
