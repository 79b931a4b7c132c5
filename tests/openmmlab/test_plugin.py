"""The plugin: found by all three libraries, strict about arguments and weights, mmcv's operators served."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from vmamba.errors import UserError
from vmamba.models.vssm import VSSM
from vmamba.openmmlab import MM_VSSM, forks, operators, pretrained
from vmamba.openmmlab.layer_decay import layer_scales
from vmamba.weights import CheckpointError, WeightsDoNotFit

SMALL = dict(
    dims=8, depths=(1, 1, 1, 1), norm_layer="ln2d", ssm_d_state=1, patchembed_version="v2", downsample_version="v3"
)
LONG = "vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"


def small(**kwargs) -> MM_VSSM:
    return MM_VSSM(**{**SMALL, **kwargs})


@pytest.mark.parametrize("library", ["mmdet", "mmseg", "mmpretrain"])
def test_every_library_finds_the_backbone(library):
    registry = pytest.importorskip(f"{library}.registry").MODELS
    backbone = registry.build(dict(type="MM_VSSM", **SMALL))
    assert isinstance(backbone, MM_VSSM) and registry.get("MM_VSSM") is MODELS.get("MM_VSSM")
    maps = backbone(torch.randn(1, 3, 61, 45))
    assert isinstance(maps, tuple) and [tuple(m.shape[1:]) for m in maps] == [
        (8, 16, 12),
        (16, 8, 6),
        (32, 4, 3),
        (64, 2, 2),
    ]


def test_inherited_keys_are_refused_unless_deleted():
    swin = dict(type="SwinTransformer", embed_dims=96, window_size=7, init_cfg=None)
    base = Config(dict(model=dict(backbone=swin)))
    merged = copy.deepcopy(base)
    merged.merge_from_dict(dict(model=dict(backbone=dict(type="MM_VSSM", **SMALL))))
    with pytest.raises(TypeError, match=r"embed_dims, window_size belong to another backbone.*_delete_=True"):
        MODELS.build(merged.model.backbone)
    base.merge_from_dict(dict(model=dict(backbone=dict(_delete_=True, type="MM_VSSM", **SMALL))))
    assert isinstance(MODELS.build(base.model.backbone), MM_VSSM)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(mlp_ration=2.0), "unknown argument 'mlp_ration'. Did you mean 'mlp_ratio'"),
        (dict(init_cfg=dict(type="Pretrained", checkpoint="x.pth")), "named by pretrained="),
        (dict(drop_rate=0.1), "belong to another backbone"),
        (dict(ssm_rank_ratio=2.0), "never had an effect"),
        (dict(frozen_stages=5), "frozen_stages: expected -1 to 4, got 5"),
        (dict(out_indices=(0, 4)), "out_indices: 4 is not a stage"),
        (dict(pretrained=""), "pretrained: it is empty"),
        (dict(pretrained="nowhere/vssm.pth"), "there is no checkpoint nowhere/vssm.pth"),
    ],
)
def test_wrong_arguments_are_told(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        small(**wrong)


def test_pretrained_is_loaded_and_kept_by_a_runner(tmp_path):
    classifier = VSSM(num_classes=7, **SMALL)
    torch.save({"model": classifier.state_dict()}, tmp_path / "ckpt.pth")
    backbone = small(pretrained=str(tmp_path / "ckpt.pth"))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    for key, value in classifier.state_dict().items():
        assert key.startswith("classifier.") or torch.equal(before[key], value)

    class Detector(BaseModel):
        def __init__(self):
            super().__init__()
            self.backbone = backbone

        def forward(self, inputs, data_samples=None, mode="tensor"):
            return self.backbone(inputs)

    Detector().init_weights()
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    with pytest.raises(WeightsDoNotFit, match=r"ckpt.pth does not fit MM_VSSM: .*mismatched"):
        small(pretrained=str(tmp_path / "ckpt.pth"), dims=16)
    torch.save(
        {"model": {k: v for k, v in classifier.state_dict().items() if "layers.0" not in k}}, tmp_path / "part.pth"
    )
    with pytest.raises(WeightsDoNotFit, match="missing"):
        small(pretrained=str(tmp_path / "part.pth"))


@pytest.mark.parametrize("name", ["vim_tiny", "vim_tiny.in1k", LONG, f"{LONG}.in1k"])
def test_pretrained_takes_every_name_of_a_model(name, monkeypatch):
    monkeypatch.setattr(pretrained, "fetch_pretrained", lambda short: Path("released", short))
    assert pretrained.weights_file(name) == Path("released", "vim_tiny")
    assert pretrained.weights_file(f"{name}.pth") == Path(f"{name}.pth"), "a file's name"


def test_weights_are_drawn_once():
    drawn = small().layers[0].blocks[0].op.in_proj.weight.detach()
    assert float(drawn.std()) < 0.03, "the published 0.02, not torch's default"


def test_frozen_stages_and_norms_stay_in_evaluation():
    backbone = small(frozen_stages=1, norm_layer="bn", norm_eval=True, drop_path_rate=0.5).train()
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in backbone.named_parameters() if n.startswith(("patch_embed.", "layers.0."))}
    assert not backbone.layers[0].training and backbone.layers[1].training
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(m.training for m in small(norm_layer="bn").train().modules())
    assert not [n for n, p in small(frozen_stages=-1).named_parameters() if not p.requires_grad]


def test_checkpointing_gives_the_same_gradients():
    plain, recomputed = small(drop_path_rate=0.0), small(drop_path_rate=0.0, with_cp=True)
    recomputed.load_state_dict(plain.state_dict())
    assert all(block.use_checkpoint for layer in recomputed.layers for block in layer.blocks)
    x = torch.randn(1, 3, 40, 56)
    for model in (plain, recomputed):
        sum(m.square().mean() for m in model(x)).backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), recomputed.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_every_trained_parameter_has_a_gradient_for_some_levels():
    backbone = small(out_indices=(0, 2))
    maps = backbone(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == [8, 32]
    sum(m.square().mean() for m in maps).backward()
    assert [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [n for n, p in backbone.named_parameters() if n.startswith("layers.3.") and p.requires_grad] == []


def test_layer_decay_scales_each_layer():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = small(depths=(1, 2, 1, 1)), nn.Linear(2, 2)

    model = Detector()
    scales = layer_scales(model.backbone, 0.5)
    expected = {
        "patch_embed.0.weight": 0.5**6,
        "layers.0.blocks.0.norm.weight": 0.5**5,
        "layers.0.downsample.1.weight": 0.5**5,
        "layers.1.blocks.1.norm.weight": 0.5**3,
        "layers.3.blocks.0.op.Ds": 0.5,
        "outnorm0.weight": 1.0,
    }
    assert expected.items() <= scales.items() and scales.keys() == dict(model.backbone.named_parameters()).keys()
    paramwise = dict(layer_decay_rate=0.5, custom_keys={"norm": dict(decay_mult=0.0)})
    cfg = dict(
        type="OptimWrapper",
        constructor="LayerDecayOptimWrapperConstructor",
        optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.1),
        paramwise_cfg=paramwise,
    )
    groups = build_optim_wrapper(model, copy.deepcopy(cfg)).optimizer.param_groups
    found = {id(g["params"][0]): (g["lr"], g["weight_decay"]) for g in groups}
    for name, parameter in model.named_parameters():
        rate = 1e-2 * scales.get(name.removeprefix("backbone."), 1.0)
        assert found[id(parameter)] == pytest.approx((rate, 0.0 if "norm" in name else 0.1)), name
    paramwise["layer_decay_rate"] = 1.5
    with pytest.raises(UserError, match="layer_decay_rate: expected a number above 0"):
        build_optim_wrapper(model, copy.deepcopy(cfg))
    model.backbone, paramwise["layer_decay_rate"] = nn.Linear(1, 1), 0.5
    with pytest.raises(UserError, match="Linear does not tell its layers"):
        build_optim_wrapper(model, cfg)


served = pytest.mark.skipif(not operators.serve_missing_operators(), reason="this mmcv has a compiled part")


@served
def test_regions_are_pooled_as_torchvision_does():
    from mmcv.ops import roi_align

    torch.manual_seed(0)
    maps = torch.randn(2, 3, 12, 10, dtype=torch.float64, requires_grad=True)
    regions = torch.tensor([[0, 1.0, 2.0, 20.0, 30.0], [1, 0.0, 0.0, 9.0, 7.0]], dtype=torch.float64)
    ours = roi_align(maps, regions, (3, 2), 0.25, 0, "avg", True)
    theirs = torchvision.ops.roi_align(maps, regions, (3, 2), 0.25, 0, True)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    (a,), (b,) = (torch.autograd.grad((out * weight).sum(), maps) for out in (ours, theirs))
    torch.testing.assert_close(a, b)
    with pytest.raises(RuntimeError, match="pool_mode='max'"):
        roi_align(maps, regions, (3, 2), 0.25, 0, "max", True)


@served
@pytest.mark.parametrize("offset", [0, 1])
def test_boxes_are_suppressed_by_their_overlap(offset):
    from mmcv.ops import nms

    def overlap(a: Tensor, b: Tensor) -> float:
        sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2]) + offset).clamp(min=0)
        areas = [(c[2:] - c[:2] + offset).prod() for c in (a, b)]
        return float(sides.prod() / (sum(areas) - sides.prod()))

    torch.manual_seed(1)
    corners = torch.randint(0, 20, (40, 2)).float()
    boxes = torch.cat([corners, corners + torch.randint(3, 12, (40, 2))], 1)
    scores = torch.rand(40)
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[i], boxes[j]) <= 0.4 for j in kept):
            kept.append(i)
    found, indices = nms(boxes, scores, 0.4, offset)
    assert indices.tolist() == kept and torch.equal(found[:, :4], boxes[kept])


@served
def test_other_operators_are_there_and_raise_when_called():
    from mmcv.utils.ext_loader import check_ops_exist

    module = sys.modules["mmcv._ext"]
    assert check_ops_exist() and module.__spec__.origin == "vmamba.openmmlab.operators"
    with pytest.raises(RuntimeError, match="'softnms' needs mmcv's compiled part"):
        module.softnms(None)
    assert not hasattr(module, "__path__")


def test_a_compiled_mmcv_is_left_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)
    monkeypatch.setattr(operators, "find_spec", lambda name: object())
    assert not operators.serve_missing_operators() and "mmcv._ext" not in sys.modules
    monkeypatch.setattr(operators, "find_spec", lambda name: None)
    assert not operators.serve_missing_operators()


def test_the_files_of_a_fork_are_found(monkeypatch):
    monkeypatch.setattr(forks, "find_spec", lambda name: object())
    monkeypatch.setattr(forks, "MODULE2PACKAGE", {"mmseg": "installed-by-another-name"})
    forks.find_forks()
    assert forks.MODULE2PACKAGE == {"mmseg": "mmseg"}
    monkeypatch.setattr(forks, "is_installed", lambda package: True)
    monkeypatch.setattr(forks, "MODULE2PACKAGE", {"mmseg": "mmsegmentation"})
    forks.find_forks()
    assert forks.MODULE2PACKAGE == {"mmseg": "mmsegmentation"}


def test_a_runners_checkpoint_is_read_without_unsafe_pickles(tmp_path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    hub = dict(log_scalars={"train/loss": history}, runtime_info={"iter": 2}, resumed_keys={"train/loss": True})
    torch.save(dict(meta=dict(epoch=1), message_hub=hub, state_dict={"w": torch.ones(2)}), tmp_path / "epoch_1.pth")
    read = CheckpointLoader.load_checkpoint(str(tmp_path / "epoch_1.pth"), "cpu", logger=None)
    loss = read["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(loss, HistoryBuffer) and loss.mean() == 2.0 and loss.statistics("max") == 3.0
    loss.update(5.0)
    assert loss.current() == 5.0 and read["meta"] == {"epoch": 1}

    class Harmful:
        def __reduce__(self):
            return (print, ("run",))

    torch.save(dict(state_dict={}, meta=Harmful()), tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="refused"):
        CheckpointLoader.load_checkpoint(str(tmp_path / "bad.pth"), "cpu", logger=None)
