"""The detection configurations: every published row with its hyper-parameters, its size, its batch."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from classification.config import load_config
from vmamba.models.from_config import VSSM_ARGUMENTS, vssm_arguments
from vmamba.models.vssm import VSSM
from vmamba.openmmlab.flops import count_config

from .shrunk import CONFIGS, DETECTION, batches_of, name_of, read_once

# Source: the published tables. File: (backbone, drop path, width, millions of parameters, G FLOPs at 1280x800)
ROWS = {
    "vssm/mask_rcnn_vssm_fpn_coco_tiny": ("vanilla_vmamba_tiny", 0.2, 96, 42, 286),
    "vssm/mask_rcnn_vssm_fpn_coco_small": ("vanilla_vmamba_small", 0.2, 96, 64, 400),
    "vssm/mask_rcnn_vssm_fpn_coco_base": ("vanilla_vmamba_base", 0.2, 128, 96, 540),
    "vssm1/mask_rcnn_vssm_fpn_coco_tiny1": ("vmamba_tiny_s2l5", 0.2, 96, 50.2, 270),
    "vssm1/mask_rcnn_vssm_fpn_coco_tiny": ("vmamba_tiny_s1l8", 0.2, 96, 49.8, 271),
    "vssm1/mask_rcnn_vssm_fpn_coco_small": ("vmamba_small_s2l15", 0.3, 96, 69.7, 349),
    "vssm1/mask_rcnn_vssm_fpn_coco_base": ("vmamba_base_s2l15", 0.6, 128, 108, 485),
}
LONG = [name for name in ROWS if not name.endswith("base")]
RECIPES = {
    "vanilla_vmamba_tiny": "vmambav0_tiny_224",
    "vanilla_vmamba_small": "vmambav0_small_224",
    "vanilla_vmamba_base": "vmambav0_base_224",
    "vmamba_tiny_s2l5": "vmambav2_tiny_224",
    "vmamba_tiny_s1l8": "vmambav2v_tiny_224",
    "vmamba_small_s2l15": "vmambav2_small_224",
    "vmamba_base_s2l15": "vmambav2_base_224",
}
# One of each kind of batches; those of the others are the same.
LOADED = [
    "detection/vssm1/mask_rcnn_vssm_fpn_coco_tiny",
    "detection/vssm/mask_rcnn_vssm_fpn_coco_base",
    "detection/vssm1/mask_rcnn_vssm_fpn_coco_tiny_ms_3x",
    "detection/fastvim/cascade_mask_rcnn_fastvim_coco_tiny",
]
OTHERS = sorted({name_of(path) for path in DETECTION} - set(LOADED))
SHORT_SIDES = [(side, 1333) for side in range(480, 801, 32)]


def config(name: str) -> Config:
    return read_once(f"detection/{name}")


def test_every_published_row_has_its_file():
    expected = {*ROWS, *(f"{name}_ms_3x" for name in LONG)}
    there = [path for path in DETECTION if path.parent.name.startswith("vssm")]
    assert {str(p.relative_to(CONFIGS / "detection").with_suffix("")) for p in there} == expected
    assert len(expected) == 12
    assert max(len(p.read_text().splitlines()) for p in there) <= 10


@pytest.mark.parametrize("name", RECIPES)
def test_a_backbone_is_the_classification_recipes(name):
    backbone = Config.fromfile(CONFIGS / "backbones" / f"{name}.py").backbone.to_dict()
    assert backbone.pop("type") == "MM_VSSM" and backbone.pop("pretrained") == name
    assert backbone.pop("out_indices") == (0, 1, 2, 3)
    recipe, _ = load_config(CONFIGS / "classification" / f"{RECIPES[name]}.yaml")
    expected = {key: value for key, value in vssm_arguments(recipe).items() if key in VSSM_ARGUMENTS.values()}
    default = {key: p.default for key, p in inspect.signature(VSSM.__init__).parameters.items()}
    for key, value in expected.items():
        found = backbone.get(key, default[key])
        assert (list(found) if key == "depths" else found) == value, key
    assert backbone.keys() <= expected.keys()


@pytest.mark.parametrize("name", [*ROWS, *(f"{name}_ms_3x" for name in LONG)])
def test_hyper_parameters_are_the_tables(name):
    cfg, long = config(name), name.endswith("_ms_3x")
    backbone, drop_path, width, _, _ = ROWS[name.removesuffix("_ms_3x")]
    assert cfg.model.backbone.pretrained == backbone and cfg.model.backbone.drop_path_rate == drop_path
    assert cfg.model.backbone.to_dict().items() >= cfg.backbone.to_dict().items()
    assert cfg.model.type == "MaskRCNN" and cfg.model.neck.type == "FPN"
    assert list(cfg.model.neck.in_channels) == [width * 2**i for i in range(4)]
    optimizer = cfg.optim_wrapper.optimizer.to_dict()
    assert optimizer == dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert cfg.optim_wrapper.type == "OptimWrapper" and "clip_grad" not in cfg.optim_wrapper
    keys = {"absolute_pos_embed", "relative_position_bias_table", "norm"}
    assert cfg.optim_wrapper.paramwise_cfg.to_dict() == dict(custom_keys={k: dict(decay_mult=0.0) for k in keys})
    warm_up, steps = ({k: v for k, v in schedule.items() if k != "_scope_"} for schedule in cfg.param_scheduler)
    assert warm_up == dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000)
    epochs, milestones = (36, [27, 33]) if long else (12, [8, 11])
    steps_wanted = dict(type="MultiStepLR", begin=0, end=epochs, by_epoch=True, milestones=milestones, gamma=0.1)
    assert steps == steps_wanted and cfg.train_cfg.max_epochs == epochs and cfg.train_cfg.val_interval == 1
    assert cfg.train_dataloader.batch_size == (1 if name == "vssm/mask_rcnn_vssm_fpn_coco_base" else 2)
    assert cfg.train_dataloader.dataset.type == "CocoDataset" and cfg.val_evaluator.metric == ["bbox", "segm"]
    assert cfg.custom_imports.imports == ["vmamba.openmmlab"] and cfg.auto_scale_lr.base_batch_size == 16
    steps_of = {part["type"]: part for part in cfg.train_dataloader.dataset.pipeline}
    assert steps_of["RandomFlip"].prob == 0.5
    if not long:
        assert steps_of["Resize"].scale == (1333, 800) and steps_of["Resize"].keep_ratio
        return
    (resize,), (first, crop, second) = steps_of["RandomChoice"].transforms
    assert list(map(tuple, resize.scales)) == SHORT_SIDES == list(map(tuple, second.scales))
    assert list(map(tuple, first.scales)) == [(side, 1333) for side in (400, 500, 600)]
    assert crop.crop_type == "absolute_range" and tuple(crop.crop_size) == (384, 600)


@pytest.mark.parametrize("name", ROWS)
def test_sizes_are_the_tables(name):
    """On the meta device; a 3x configuration has the model of its 1x one."""
    *_, millions, gflops = ROWS[name]
    if name in LONG:
        assert config(f"{name}_ms_3x").model == config(name).model
    count = count_config(copy.deepcopy(config(name)))
    digits = 0 if isinstance(millions, int) else 1
    assert round(count.parameters / 1e6, digits) == millions, count.parameters
    assert round(count.gflops) == gflops, count.gflops


@pytest.mark.parametrize("name", OTHERS)
def test_batches_are_those_of_one_that_is_loaded(name):
    assert batches_of(read_once(name)) in [batches_of(read_once(loaded)) for loaded in LOADED]


@pytest.mark.parametrize("name", [*LOADED, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_pipelines_yield_batches(name: str, coco: Path):
    cfg = copy.deepcopy(read_once(name))
    init_default_scope("mmdet")
    loader = cfg.train_dataloader
    loader.update(num_workers=0, persistent_workers=False)
    loader.dataset.data_root = str(coco)
    batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    assert len(batch["inputs"]) == loader.batch_size and batch["inputs"][0].dtype == torch.uint8
    for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
        assert sample.img_shape == tuple(image.shape[1:]) and min(sample.img_shape) >= 384
        assert "vssm" in name or sample.img_shape == (1024, 1024)
        instances = sample.gt_instances
        assert len(instances.bboxes) == len(instances.masks) == len(instances.labels)
