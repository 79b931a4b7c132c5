"""Every segmentation configuration: the published values, the backbone of its classification recipe, what it builds."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from classification.arguments import parse
from tests.openmmlab.ade_tree import CONFIGS, SEGMENTATION, write_ade_tree
from tests.openmmlab.shrunk import batches_of, name_of, read_once
from vmamba.models.from_config import VSSM_ARGUMENTS, vssm_arguments
from vmamba.models.vssm import VSSM
from vmamba.openmmlab.flops import count_config

NAME = "upernet_vssm_4xb4-160k_ade20k"
# folder/crop_size: (classification recipe, released model, drop path, million parameters, G FLOPs)
ROWS = {
    f"vssm/{NAME}-512x512_tiny": ("vmambav0_tiny_224", "vanilla_vmamba_tiny", 0.3, 54.5, 964),
    f"vssm/{NAME}-512x512_small": ("vmambav0_small_224", "vanilla_vmamba_small", 0.3, 76.1, 1081),
    f"vssm/{NAME}-512x512_base": ("vmambav0_base_224", "vanilla_vmamba_base", 0.3, 109.8, 1226),
    f"vssm/{NAME}-640x640_small": ("vmambav0_small_224", "vanilla_vmamba_small", 0.3, 76.1, 1689),
    f"vssm/{NAME}-896x896_small": ("vmambav0_small_224", "vanilla_vmamba_small", 0.3, 76.1, 3310),
    f"vssm1/{NAME}-512x512_tiny1": ("vmambav2_tiny_224", "vmamba_tiny_s2l5", 0.2, 62.4, 948),
    f"vssm1/{NAME}-512x512_tiny": ("vmambav2v_tiny_224", "vmamba_tiny_s1l8", 0.2, 61.9, 949),
    f"vssm1/{NAME}-512x512_small": ("vmambav2_small_224", "vmamba_small_s2l15", 0.3, 81.8, 1028),
    f"vssm1/{NAME}-512x512_base": ("vmambav2_base_224", "vmamba_base_s2l15", 0.6, 122.1, 1170),
    f"vssm1/{NAME}-640x640_small": ("vmambav2_small_224", "vmamba_small_s2l15", 0.3, 81.8, 1607),
    f"vssm1/{NAME}-896x896_small": ("vmambav2_small_224", "vmamba_small_s2l15", 0.3, 81.8, 3149),
}
# One of each kind of batches; those of the others are the same.
LOADED = [
    *(f"vssm1/{NAME}-{size}" for size in ("512x512_tiny", "640x640_small", "896x896_small")),
    "vim/upernet_vim_4xb8-60k_ade20k-512x512_tiny",
]
OTHERS = sorted({name_of(path).removeprefix("segmentation/") for path in SEGMENTATION} - set(LOADED))
every_row = pytest.mark.parametrize("row", ROWS)


def read(row: str) -> Config:
    return copy.deepcopy(read_once(f"segmentation/{row}"))


def crop_of(row: str) -> int:
    return int(row.partition("ade20k-")[2].partition("x")[0])


def test_the_rows_are_all_there_are():
    there = CONFIGS.joinpath("segmentation").glob("vssm*/*.py")
    assert {f"{path.parent.name}/{path.stem}" for path in there} == set(ROWS)


@every_row
def test_published_values(row):
    cfg, crop = read(row), crop_of(row)
    first = cfg.model.backbone.dims
    head, auxiliary = cfg.model.decode_head, cfg.model.auxiliary_head
    assert (head.type, head.channels, head.num_classes, head.dropout_ratio) == ("UPerHead", 512, 150, 0.1)
    assert tuple(head.pool_scales) == (1, 2, 3, 6) and head.in_channels == [first * 2**i for i in range(4)]
    assert (auxiliary.type, auxiliary.channels, auxiliary.num_classes) == ("FCNHead", 256, 150)
    assert (auxiliary.in_index, auxiliary.in_channels, auxiliary.loss_decode.loss_weight) == (2, 4 * first, 0.4)
    assert head.norm_cfg.type == auxiliary.norm_cfg.type == "SyncBN" and cfg.model.test_cfg.mode == "whole"

    wrapper = cfg.optim_wrapper
    optimizer = dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01)
    assert wrapper.type == "OptimWrapper" and dict(wrapper.optimizer) == optimizer
    undecayed = {key: value["decay_mult"] for key, value in wrapper.paramwise_cfg.custom_keys.items()}
    assert undecayed == dict(absolute_pos_embed=0.0, relative_position_bias_table=0.0, norm=0.0)
    warmup, decay = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.begin, warmup.end) == ("LinearLR", 1e-6, 0, 1500)
    assert (decay.type, decay.power, decay.eta_min, decay.begin, decay.end) == ("PolyLR", 1.0, 0.0, 1500, 160000)
    assert not warmup.by_epoch and not decay.by_epoch
    assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ("IterBasedTrainLoop", 160000)
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 16000
    assert cfg.train_dataloader.batch_size == 2 and cfg.val_dataloader.batch_size == 1

    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    order = ["RandomResize", "RandomCrop", "RandomFlip", "PhotoMetricDistortion"]
    assert list(steps) == ["LoadImageFromFile", "LoadAnnotations", *order, "PackSegInputs"]
    assert tuple(steps["RandomResize"].scale) == (4 * crop, crop) and steps["RandomResize"].keep_ratio
    assert tuple(steps["RandomResize"].ratio_range) == (0.5, 2.0) and steps["RandomFlip"].prob == 0.5
    assert tuple(steps["RandomCrop"].crop_size) == tuple(cfg.model.data_preprocessor.size) == (crop, crop)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.pipeline[1].type == "Resize" and tuple(loader.dataset.pipeline[1].scale) == (
            4 * crop,
            crop,
        )
    sizes, flips, *_ = cfg.tta_pipeline[1].transforms
    assert [step.scale_factor for step in sizes] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert [step.prob for step in flips] == [0.0, 1.0] and cfg.tta_model.type == "SegTTAModel"


@every_row
def test_the_backbone_is_that_of_its_classification_recipe(row):
    recipe, model, drop_path, *_ = ROWS[row]
    expected = vssm_arguments(parse(["--cfg", str(CONFIGS / "classification" / f"{recipe}.yaml")])[0])
    backbone = dict(read(row).model.backbone)
    assert (backbone.pop("type"), backbone.pop("pretrained"), backbone.pop("drop_path_rate")) == (
        "MM_VSSM",
        model,
        drop_path,
    )
    assert tuple(backbone.pop("out_indices")) == (0, 1, 2, 3)
    assert set(backbone) <= set(VSSM_ARGUMENTS.values())
    defaults = inspect.signature(VSSM.__init__).parameters
    for argument in VSSM_ARGUMENTS.values():
        value = backbone.get(argument, defaults[argument].default)
        plain = list(value) if isinstance(value, list | tuple) else value
        wanted = list(expected[argument]) if isinstance(expected[argument], list | tuple) else expected[argument]
        same = plain.lower() == wanted.lower() if isinstance(plain, str) else plain == wanted
        assert same, f"{argument} is {plain}, and {wanted} in {recipe}"


@every_row
def test_sizes_are_the_tables(row):
    """On the meta device; FLOPs at 512x2048, 640x2560 and 896x3584."""
    *_, millions, gflops = ROWS[row]
    crop = crop_of(row)
    count = count_config(read(row), (crop, 4 * crop))
    assert round(count.gflops) == gflops, count.gflops
    assert round(count.parameters / 1e6, 1) == millions, count.parameters


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_ade_tree(tmp_path_factory.mktemp("ade"), 2, 1)


@pytest.mark.parametrize("row", OTHERS)
def test_batches_are_those_of_one_that_is_loaded(row):
    own, *loaded = (batches_of(read_once(f"segmentation/{name}")) for name in (row, *LOADED))
    assert own in loaded


@pytest.mark.parametrize("row", [*LOADED, *(pytest.param(row, marks=pytest.mark.slow) for row in OTHERS)])
def test_its_pipelines_yield_batches(row, tree):
    init_default_scope("mmseg")
    cfg, crop = read(row), crop_of(row)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(tree)
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader)))
    batch = MODELS.build(cfg.model.data_preprocessor)(batch, training=True)
    size = cfg.train_dataloader.batch_size
    assert batch["inputs"].shape == (size, 3, crop, crop)
    maps = torch.stack([sample.gt_sem_seg.data for sample in batch["data_samples"]])
    assert maps.shape == (size, 1, crop, crop)
    assert set(maps.unique().tolist()) <= {0, 1, 149, 255}, "0 is nothing, 1 to 150 are 0 to 149"
    (image,) = next(iter(Runner.build_dataloader(cfg.val_dataloader)))["inputs"]
    assert min(image.shape[1:]) == crop
