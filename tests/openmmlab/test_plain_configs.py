"""Vim's and FastVim's configurations: the published values, the backbone of the classifier, the decay of its layers."""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

import vmamba.models  # noqa: F401  registers the classifiers
from vmamba.openmmlab import MM_FastVim, MM_Vim, VisionMambaDet, VisionMambaSeg
from vmamba.openmmlab.configs import fit_to_machine
from vmamba.openmmlab.flops import count_config
from vmamba.openmmlab.models import empty_model

from .shrunk import CONFIGS, read_once

VIM_SEG, FAST_SEG = (
    "segmentation/vim/upernet_vim_4xb8-60k_ade20k-512x512",
    "segmentation/fastvim/upernet_fastvim_8xb2-160k_ade20k-512x512",
)
VIM_DET, FAST_DET = "detection/vim/cascade_mask_rcnn_vim_coco", "detection/fastvim/cascade_mask_rcnn_fastvim_coco"
WIDTHS = dict(tiny=192, small=384, base=768)
# File: (backbone, the classifier whose weights it starts from, drop path)
ROWS: dict[str, tuple[type, str, float]] = {
    **{f"{VIM_SEG}_{size}": (VisionMambaSeg, f"vim_{size}", 0.1) for size in ("tiny", "small")},
    **{f"{FAST_SEG}_{size}": (MM_FastVim, f"fastvim_{size}", 0.4 if size == "base" else 0.1) for size in WIDTHS},
    **{f"{VIM_DET}_{size}": (VisionMambaDet, f"vim_{size}", 0.1) for size in WIDTHS},
    **{f"{FAST_DET}_{size}": (MM_FastVim, f"fastvim_{size}", 0.4 if size == "base" else 0.1) for size in WIDTHS},
    "detection/fastvim/cascade_mask_rcnn_vim_coco_small": (MM_Vim, "vim_small", 0.1),
}
# One of each backbone and framework, with all of its blocks; the others with four.
WHOLE = [
    *(f"{start}_tiny" for start in (VIM_SEG, FAST_SEG, VIM_DET)),
    "detection/fastvim/cascade_mask_rcnn_vim_coco_small",
]
# Those whose sizes are counted in each run.
COUNTED = [f"{VIM_SEG}_tiny", f"{FAST_SEG}_tiny", f"{VIM_DET}_tiny"]
segmentors = pytest.mark.parametrize("row", [row for row in ROWS if row.startswith("segmentation")])
detectors = pytest.mark.parametrize("row", [row for row in ROWS if row.startswith("detection")])
UNDECAYED = dict(decay_mult=0.0)
STDS = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]


def read(row: str) -> Config:
    return copy.deepcopy(read_once(row))


def width_of(row: str) -> int:
    return WIDTHS[row.rpartition("_")[2]]


def turns(row: str) -> bool:
    """Whether the tokens have a rotary embedding, and maps are of the stream."""
    return row.startswith(VIM_DET) or row == f"{VIM_SEG}_small"


def without_most_blocks(cfg: Config, depth: int) -> None:
    backbone = cfg.model.backbone
    backbone.depth = depth
    if "out_indices" in backbone:
        several = len(backbone.out_indices) > 1
        backbone.out_indices = [min(k, depth - 1) for k in range(4)] if several else [depth - 1]


def check_backbone(row: str, found: dict[str, Any]) -> None:
    """Compare a configuration's backbone, with the defaults of its class, with what was published."""
    kind, name, drop_path = ROWS[row]
    signatures = [inspect.signature(part.__init__).parameters for part in reversed(kind.__mro__)]
    defaults = {key: p.default for parameters in signatures for key, p in parameters.items()}
    rms = kind in (VisionMambaSeg, VisionMambaDet)
    expected = dict(
        pretrained=name,
        embed_dim=width_of(row),
        depth=24,
        patch_size=16,
        d_state=16,
        drop_path_rate=drop_path,
        rms_norm=rms,
        fused_add_norm=rms,
        load_ema=not rms,
        if_rope=turns(row),
        if_rope_residual=turns(row),
        pt_hw_seq_len=14,
        residual_in_fp32=row != f"{VIM_SEG}_tiny",
        bimamba_type="v2",
        use_norm_after_ssm=kind is MM_FastVim,
    )
    if kind is VisionMambaSeg:
        expected.update(use_residual_as_feature=turns(row), last_layer_process="add" if turns(row) else "none")
        expected.update(if_fpn=True, norm_cfg=dict(type="SyncBN"))
    elif kind is VisionMambaDet:
        expected.update(last_layer_process="add")
    else:
        expected.update(feature="hidden", out_norm=True, fpn=None)
    assert found["type"] == kind.__name__
    assert {key: {**defaults, **found}[key] for key in expected} == expected
    assert found.keys() <= expected.keys() | {"type", "img_size", "out_indices"}


def plain(schedule: Any) -> dict[str, Any]:
    return {key: value for key, value in schedule.items() if key != "_scope_"}


def test_the_rows_are_all_there_are():
    there = [path for task in ("detection", "segmentation") for path in CONFIGS.glob(f"{task}/*vim/*.py")]
    assert {str(path.relative_to(CONFIGS).with_suffix("")) for path in there} == set(ROWS)
    assert max(len(path.read_text().splitlines()) for path in there) <= 16


@segmentors
def test_published_values_of_segmentors(row):
    cfg, width, vim = read(row), width_of(row), row.startswith(VIM_SEG)
    check_backbone(row, cfg.model.backbone.to_dict())
    head, auxiliary, backbone = cfg.model.decode_head, cfg.model.auxiliary_head, cfg.model.backbone
    assert (head.type, head.channels, head.dropout_ratio) == ("UPerHead", width if vim else 512, 0.1)
    assert head.in_channels == [width] * 4 and tuple(head.pool_scales) == (1, 2, 3, 6)
    assert (auxiliary.type, auxiliary.channels, auxiliary.in_index) == ("FCNHead", 256, 2)
    assert auxiliary.in_channels == width and auxiliary.loss_decode.loss_weight == 0.4
    assert head.num_classes == auxiliary.num_classes == 150
    assert head.norm_cfg.type == auxiliary.norm_cfg.type == "SyncBN"
    assert cfg.model.test_cfg == dict(mode="slide", crop_size=(512, 512), stride=(341, 341))
    assert tuple(backbone.out_indices) == (5, 11, 17, 23) and backbone.img_size == 512

    rate, decay, end = (
        {"tiny": (2e-4, 0.1, 60000), "small": (1e-4, 0.05, 60000)}[row.rpartition("_")[2]]
        if vim
        else (6e-5, 0.01, 160000)
    )
    optimizer = dict(type="AdamW", lr=rate, betas=(0.9, 0.999), weight_decay=decay)
    assert cfg.optim_wrapper.type == "OptimWrapper" and cfg.optim_wrapper.optimizer == optimizer
    paramwise = cfg.optim_wrapper.paramwise_cfg
    if vim:
        assert cfg.optim_wrapper.constructor == "LayerDecayOptimWrapperConstructor"
        rate, custom = 0.95 if row.endswith("small") else 0.92, dict(pos_embed=UNDECAYED)
        assert paramwise == dict(layer_decay_rate=rate, legacy=False, flat_decay_mult=0.0, custom_keys=custom)
    else:
        undecayed = {"pos_embed", "cls_token", "norm", "A_log", "D", "A_b_log", "D_b"}
        assert paramwise == dict(custom_keys=dict.fromkeys(undecayed, UNDECAYED))
        assert "constructor" not in cfg.optim_wrapper
    warm_up, falls = map(plain, cfg.param_scheduler)
    assert warm_up == dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500)
    assert falls == dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=end)
    interval = 1000 if vim else 16000
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (end, interval)
    assert cfg.default_hooks.checkpoint.interval == interval and cfg.train_dataloader.batch_size == (8 if vim else 2)


@detectors
def test_published_values_of_detectors(row):
    cfg, width, vim = read(row), width_of(row), row.startswith(VIM_DET)
    check_backbone(row, cfg.model.backbone.to_dict())
    model, norm = cfg.model, dict(type="LN2d")
    assert (model.type, model.neck.type, model.backbone.img_size) == ("CascadeRCNN", "SimpleFPN", 1024)
    assert model.neck.backbone_channel == width and model.neck.in_channels == [width // 4, width // 2, width, width]
    assert model.neck.norm_cfg == norm and (model.neck.out_channels, model.neck.num_outs) == (256, 5)
    assert model.rpn_head.num_convs == 2 and "num_stages" not in model.backbone
    heads, mask = model.roi_head.bbox_head, model.roi_head.mask_head
    assert [head.bbox_coder.target_stds for head in heads] == STDS
    assert [stage.assigner.pos_iou_thr for stage in model.train_cfg.rcnn] == [0.5, 0.6, 0.7]
    for head in heads:
        assert (head.type, head.conv_out_channels, head.fc_out_channels) == ("Shared4Conv1FCBBoxHead", 256, 1024)
        assert head.norm_cfg == norm and head.num_classes == 80 and head.reg_class_agnostic == vim
    assert (mask.type, mask.num_convs, mask.norm_cfg) == ("FCNMaskHead", 4, norm)
    if not vim:
        assert tuple(model.backbone.out_indices) == (23,)

    optimizer = dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1 if vim else 0.05)
    wrapper = cfg.optim_wrapper
    assert wrapper.optimizer == optimizer and wrapper.constructor == "LayerDecayOptimWrapperConstructor"
    assert wrapper.type == ("AmpOptimWrapper" if vim else "OptimWrapper")
    assert wrapper.get("clip_grad") == (None if vim else dict(max_norm=35, norm_type=2))
    if vim:
        paramwise = dict(layer_decay_rate=0.7 if row.endswith("base") else 0.837, norm_decay_mult=0.0)
        paramwise["custom_keys"] = dict(pos_embed=UNDECAYED, norm=UNDECAYED)
    else:
        paramwise = dict(layer_decay_rate=0.7, legacy=False, num_layers=12, flat_decay_mult=0.0)
        paramwise["custom_keys"] = dict(pos_embed=UNDECAYED)
    assert wrapper.paramwise_cfg == paramwise
    warm_up, steps = map(plain, cfg.param_scheduler)
    assert warm_up == dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250)
    milestones = [163889, 177546]
    assert steps == dict(type="MultiStepLR", gamma=0.1, by_epoch=False, begin=0, end=184375, milestones=milestones)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (184375, 5000)
    assert cfg.auto_scale_lr == dict(base_batch_size=64) and cfg.train_dataloader.batch_size == 2

    order = ["RandomResize", "RandomCrop", "FilterAnnotations", "RandomFlip", "Pad"]
    dataset = cfg.train_dataloader.dataset
    assert dataset.type == "CocoDataset"
    assert [step.type for step in dataset.pipeline] == ["LoadImageFromFile", "LoadAnnotations", *order, "PackDetInputs"]
    resize, crop, _, flip, pad = dataset.pipeline[2:-1]
    assert tuple(resize.scale) == tuple(crop.crop_size) == tuple(pad.size) == (1024, 1024) and flip.prob == 0.5
    assert tuple(resize.ratio_range) == (0.1, 2.0) and pad.pad_val.img == (114, 114, 114)
    tested = cfg.test_dataloader.dataset.pipeline
    assert tuple(tested[1].scale) == (1024, 1024) and tested[1].keep_ratio
    # padded by the model: boxes are kept inside what the pipeline gives
    assert "Pad" not in [step.type for step in tested] and cfg.model.data_preprocessor.pad_size_divisor == 1024


@pytest.mark.parametrize("row", ROWS)
def test_the_backbone_is_that_of_the_classifier(row):
    """On the meta device: the same blocks, the position embedding of a larger grid, and no class token or head."""
    kind, name, drop_path = ROWS[row]
    cfg, depth = read(row), 24 if row in WHOLE else 4
    if depth < 24:
        without_most_blocks(cfg, depth)
    backbone = empty_model(cfg).backbone
    assert type(backbone) is kind and backbone.layers[-1].drop_path.drop_prob == pytest.approx(drop_path)
    with torch.device("meta"):
        classifier = timm.create_model(name, depth=depth)
    own = {key: tuple(value.shape) for key, value in backbone.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in classifier.state_dict().items()}
    grid = backbone.img_size[0] // 16
    assert own.pop("pos_embed") == (1, grid**2, theirs.pop("pos_embed")[2])
    blocks = {key: shape for key, shape in theirs.items() if key.startswith(("patch_embed", "layers"))}
    assert blocks.items() <= own.items() and set(theirs) - set(blocks) <= {
        "cls_token",
        "head.weight",
        "head.bias",
        "norm_f.weight",
    }
    new = {
        key.split(".")[0] if not key.startswith("layers") else key.split(".", 2)[2]
        for key in own.keys() - blocks.keys()
    }
    assert (
        new
        == {
            VisionMambaSeg: {"fpn1", "fpn2", "norm_f", *(["rope"] if backbone.rope else [])},
            VisionMambaDet: {"rope"},
            MM_FastVim: {"norm.bias", *(f"outnorm_{k}" for k in range(len(backbone.out_indices)))},
            MM_Vim: {"norm.bias", "outnorm_0"},
        }[kind]
    )
    assert backbone.feature == ("residual" if turns(row) else "hidden")
    assert (backbone.rope is not None) == backbone.if_rope_residual == turns(row)
    assert backbone.residual_in_fp32 == (not (row.startswith(VIM_SEG) and row.endswith("tiny")))


@pytest.mark.parametrize(
    "row", [row if row in COUNTED else pytest.param(row, marks=pytest.mark.slow) for row in ROWS], ids=str
)
def test_sizes_are_those_of_the_readme(row):
    """On the meta device; of one window of a segmentor."""
    task, _, name = row.partition("/")
    label = re.sub("upernet_.*-512", "..-512", name)
    lines = (CONFIGS.parent / task / "README.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"| `{label}` |")]
    count = count_config(read(row), (1024, 1024) if task == "detection" else (512, 512))
    assert f"| {count.parameters / 1e6:.1f} M | {count.gflops:.0f} G |" in line


@pytest.mark.parametrize(("row", "power"), [(f"{VIM_DET}_tiny", 4), (f"{VIM_SEG}_tiny", 4), (f"{FAST_DET}_tiny", 13)])
def test_learning_rates_fall_with_depth(row, power, recwarn):
    """And with `legacy` that of the stem alone; a configuration for mixed precision on a GPU trains on a CPU too.

    The depth is only an exponent: of three blocks the stem's power is 4, of 24 it is 25.
    """
    cfg = read(row)
    without_most_blocks(cfg, 3)
    if not torch.cuda.is_available():
        fit_to_machine(cfg)
        assert cfg.optim_wrapper.type == "OptimWrapper"
        told = [warning for warning in recwarn if "float32 instead of" in str(warning.message)]
        assert len(told) == (row == f"{VIM_DET}_tiny")
    model = empty_model(cfg)
    base, decay, rate = (
        cfg.optim_wrapper.optimizer.lr,
        cfg.optim_wrapper.optimizer.weight_decay,
        cfg.optim_wrapper.paramwise_cfg.layer_decay_rate,
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def groups(legacy: bool) -> dict[str, tuple[float, float]]:
        cfg.optim_wrapper.paramwise_cfg.legacy = legacy
        built = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)).optimizer.param_groups
        return {names[id(group["params"][0])]: (group["lr"], group["weight_decay"]) for group in built}

    found = groups(False)
    assert found["backbone.pos_embed"] == pytest.approx((base * rate**4, 0.0))
    assert found["backbone.patch_embed.proj.weight"] == pytest.approx((base * rate**4, decay))
    for block in range(3):
        assert found[f"backbone.layers.{block}.norm.weight"] == pytest.approx((base * rate ** (3 - block), 0.0))
        assert found[f"backbone.layers.{block}.mixer.A_log"] == pytest.approx((base * rate ** (3 - block), decay))
    behind = {name: lr for name, (lr, _) in found.items() if not name.startswith("backbone.")}
    assert len(behind) > 10 and set(behind.values()) == {base}
    legacy = {name: lr for name, (lr, _) in groups(True).items()}
    stem = {"backbone.pos_embed", "backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias"}
    assert all(legacy[name] == pytest.approx(base * rate**power) for name in stem)
    assert {lr for name, lr in legacy.items() if name not in stem} == {base}
