"""Published detection configurations with everything made small, to run in seconds on a CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config

from vmamba.openmmlab.configs import read_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DETECTION = sorted(path for path in CONFIGS.glob("detection/*/*.py") if path.parent.name != "_base_")
WIDTH, CHANNELS = 8, 16

_MASK_RCNN = f"""
model = dict(
    backbone=dict(dims={WIDTH}, depths=(1, 1, 1, 1), pretrained=None),
    neck=dict(in_channels={[WIDTH * 2**i for i in range(4)]}, out_channels={CHANNELS}),
    rpn_head=dict(in_channels={CHANNELS}, feat_channels={CHANNELS}),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels={CHANNELS}),
        bbox_head=dict(in_channels={CHANNELS}, fc_out_channels=32),
        mask_roi_extractor=dict(out_channels={CHANNELS}),
        mask_head=dict(in_channels={CHANNELS}, conv_out_channels={CHANNELS}, num_convs=1),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=50, max_per_img=20), rcnn=dict(sampler=dict(num=16)), rpn=dict(sampler=dict(num=32))
    ),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=5)),
)
"""
# Of the one map of a plain backbone, with three heads for boxes.
_CASCADE = f"""
model = dict(
    backbone=dict(embed_dim={CHANNELS}, depth=2, d_state=1, pretrained=None),
    neck=dict(
        backbone_channel={CHANNELS},
        in_channels={[CHANNELS // 4, CHANNELS // 2, CHANNELS, CHANNELS]},
        out_channels={CHANNELS},
    ),
    rpn_head=dict(in_channels={CHANNELS}, feat_channels={CHANNELS}),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels={CHANNELS}),
        bbox_head=[
            {{**head, "in_channels": {CHANNELS}, "conv_out_channels": {CHANNELS}, "fc_out_channels": 32}}
            for head in _base_.model.roi_head.bbox_head
        ],
        mask_roi_extractor=dict(out_channels={CHANNELS}),
        mask_head=dict(in_channels={CHANNELS}, conv_out_channels={CHANNELS}, num_convs=1),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=50, max_per_img=20),
        rcnn=[{{**stage, "sampler": {{**stage.sampler, "num": 16}}}} for stage in _base_.model.train_cfg.rcnn],
    ),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=5)),
)
if "out_indices" in _base_.model.backbone:
    model["backbone"]["out_indices"] = (1,)
"""


@cache
def read_once(name: str) -> Config:
    """Return a configuration, "detection/vim/cascade_mask_rcnn_vim_coco_tiny"; who changes it takes a copy."""
    return read_config(CONFIGS / f"{name}.py")


def name_of(path: Path) -> str:
    """Return the name by which `read_once` reads a file of `CONFIGS`."""
    return str(path.relative_to(CONFIGS).with_suffix(""))


def batches_of(cfg: Config) -> list[dict[str, Any]]:
    """Return all that a configuration says of its batches in training and evaluation."""
    return [part.to_dict() for part in (cfg.train_dataloader, cfg.val_dataloader, cfg.model.data_preprocessor)]


def shrunk(folder: Path, published: Path, coco: Path, epochs: int = 1, **more: Any) -> Path:
    """Write a configuration into `folder` that inherits `published` and is small in all but its structure.

    It trains `epochs`, or one step where the published one counts steps.
    """
    path = folder / "small.py"
    root, annotations = str(coco), coco / "annotations"
    workers = "num_workers=0, persistent_workers=False"
    cascade = published.name.startswith("cascade")
    length = dict(max_iters=1, val_interval=1) if cascade else dict(max_epochs=epochs)
    lines = [
        f"_base_ = {str(published)!r}",
        _CASCADE if cascade else _MASK_RCNN,
        f"train_dataloader = dict({workers}, dataset=dict(data_root={root!r}))",
        f"val_dataloader = dict({workers}, batch_size=1, dataset=dict(data_root={root!r}))",
        "test_dataloader = val_dataloader",
        f"val_evaluator = dict(ann_file={str(annotations / 'instances_val2017.json')!r})",
        "test_evaluator = val_evaluator",
        f"train_cfg = {length!r}",
        "default_hooks = dict(logger=dict(interval=1))",
        f"work_dir = {str(folder / 'work')!r}",
        *(f"{key} = {value!r}" for key, value in more.items()),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def small_scale() -> list[str]:
    """Return the flags that let the 1x pipelines resize to 128x96 instead of 1333x800."""
    scales = [f"{split}_dataloader.dataset.pipeline" for split in ("train", "val", "test")]
    places = zip(scales, (2, 1, 1), strict=True)
    return ["--cfg-options", *(f"{place}.{i}.scale=(128,96)" for place, i in places)]
