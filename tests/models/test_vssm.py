"""Every registered model: size, keys, forward, backward, maps, timm's interface; any image size; both layouts."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from timm.models._manipulate import group_parameters
from torch import nn

from vmamba.errors import UserError
from vmamba.models import SS2D, VSSM, Backbone, ForwardType, model_names
from vmamba_kernels.backends import require

STATE_DICTS = json.loads(gzip.decompress((Path(__file__).parents[1] / "data/vmamba_state_dicts.json.gz").read_bytes()))
DOCS = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
PARAMETERS = {
    "vanilla_vmamba_tiny": (22_893_448, "v0_tiny"),
    "vanilla_vmamba_small": (44_417_416, "v0_small"),
    "vanilla_vmamba_base": (76_254_056, "v0_base"),
    "vmamba_tiny_s2l5": (30_705_832, "tiny_s2l5"),
    "vmamba_small_s2l15": (50_147_752, "small_s2l15"),
    "vmamba_base_s2l15": (88_557_800, "base_s2l15"),
    "vmamba_tiny_s1l8": (30_249_064, "tiny_s1l8"),
    "vmamba_small_s1l20": (49_012_840, "small_s1l20"),
    "vmamba_base_s1l20": (86_614_504, "base_s1l20"),
    "vmamba_tiny_0220": (32_484_904, None),
    "vmamba_tiny_0229": (28_761_640, None),
    "vmamba_tiny_0229flex": (28_761_640, None),
    "vmamba_tiny_m2": (25_340_296, "tiny_m2"),
    "vmamba_small_m2": (39_079_816, "small_m2"),
    "vmamba_base_m2": (67_527_528, "base_m2"),
}
BACKBONES = {
    "vanilla_vmamba_tiny": 22_125_792,
    "vanilla_vmamba_base": 75_230_848,
    "vmamba_tiny_s2l5": 29_938_176,
    "vmamba_base_s2l15": 87_534_592,
    "vmamba_tiny_s1l8": 29_481_408,
    "vmamba_tiny_m2": 24_572_640,
}
NANO = dict(depths=(1, 1, 2, 1), dims=16, num_classes=10, ssm_d_state=1, norm_layer="ln2d", ssm_conv_bias=False)
NANO |= dict(downsample_version="v3", patchembed_version="v2")

each_model = pytest.mark.parametrize("name", sorted(PARAMETERS))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def shrunk(name: str, **kwargs) -> nn.Module:
    """The model with one block per stage and an eighth of its width."""
    dims = 16 if "base" in name else 12
    return timm.create_model(name, depths=(1, 1, 1, 1), dims=dims, num_classes=7, **kwargs)


def test_these_are_the_registered_models() -> None:
    assert model_names("*vmamba*") == sorted(PARAMETERS) and set(model_names()) >= set(PARAMETERS)
    assert model_names("*_02*") == ["vmamba_tiny_0220", "vmamba_tiny_0229", "vmamba_tiny_0229flex"]
    assert set(PARAMETERS) <= set(timm.list_models("*vmamba*"))


@each_model
def test_the_table_in_the_docs(name: str) -> None:
    number, _ = PARAMETERS[name]
    model = timm.create_model(name, device="meta")
    row = next(line for line in DOCS.splitlines() if line.startswith(f"| `{name}`"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    op = model.layers[0].blocks[0].op
    assert int(cells[-1].replace(",", "")) == number
    assert int(cells[2]) == model.dims[0] and [int(d) for d in cells[3].split(",")] == model.depths
    assert int(cells[4]) == op.d_state and float(cells[5]) == op.d_inner / model.dims[0]
    assert (cells[7] == "ln2d") == model.channel_first


@each_model
def test_parameters_keys_and_rates(name: str) -> None:
    number, entry = PARAMETERS[name]
    model = timm.create_model(name, device="meta")
    op = model.layers[0].blocks[0].op
    assert count(model) == number and not list(model.buffers())
    rates = [block.drop_path.drop_prob for stage in model.layers for block in stage.blocks]
    published = STATE_DICTS[entry]["kwargs"]["drop_path_rate"] if entry else 0.2
    assert rates[0] == 0 and rates[-1] == published
    if entry:
        expected = STATE_DICTS[entry]
        assert number == expected["num_params"]
        assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected["keys"]
        published_model = VSSM(**expected["kwargs"], device="meta")
        assert {k: list(v.shape) for k, v in published_model.state_dict().items()} == expected["keys"]
        options = {name: published_model.layers[0].blocks[0].op.options}
        assert options == {name: op.options}


@pytest.mark.parametrize("name, number", BACKBONES.items())
def test_parameters_of_backbones(name: str, number: int) -> None:
    model = timm.create_model(name, device="meta")
    backbone = Backbone(**STATE_DICTS[PARAMETERS[name][1]]["kwargs"], device="meta")
    assert count(backbone) == number
    outnorms = {f"outnorm{i}.{leaf}" for i in range(4) for leaf in ("weight", "bias")}
    kept = {k for k in model.state_dict() if not k.startswith("classifier.")}
    assert set(backbone.state_dict()) == kept | outnorms


@each_model
@pytest.mark.parametrize("channel_first", [True, False])
def test_forward_backward_and_layout(name: str, channel_first: bool) -> None:
    torch.manual_seed(0)
    model = shrunk(name, channel_first=channel_first, drop_path_rate=0.0)
    other = shrunk(name, channel_first=not channel_first, drop_path_rate=0.0)
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 37, 50)
    logits = model(x)
    assert logits.shape == (2, 7)
    assert torch.allclose(logits, other(x), atol=3e-6)
    logits.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, key


@each_model
def test_timm_interface(name: str) -> None:
    model = shrunk(name).eval()
    x = torch.randn(2, 3, 64, 96)
    cfg = model.pretrained_cfg
    assert cfg["input_size"] == (3, 224, 224) and cfg["pool_size"] == (7, 7) and cfg["crop_pct"] == 0.875
    assert f"{cfg['classifier']}.weight" in model.state_dict() and f"{cfg['first_conv']}.weight" in model.state_dict()
    with torch.no_grad():
        features = model.forward_features(x)
        shape = (2, model.num_features, 2, 3) if model.output_fmt == "NCHW" else (2, 2, 3, model.num_features)
        assert features.shape == shape
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        assert torch.equal(model.forward_head(features), model(x))
        assert torch.equal(model.get_classifier()(pooled), model(x))

        final, maps = model.forward_intermediates(x)
        assert torch.equal(final, features) and len(maps) == 4
        only = dict(intermediates_only=True, output_fmt=model.output_fmt)
        last = model.forward_intermediates(x, indices=1, norm=True, **only)
        assert len(last) == 1 and torch.equal(last[0], features)
        early = model.forward_intermediates(x, indices=[0, 1], stop_early=True, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(early, maps[:2]))
        assert [m.shape for m in maps] == [(2, d, 16 >> i, 24 >> i) for i, d in enumerate(model.dims)]
        last_nhwc = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
        assert torch.equal(last_nhwc[2].permute(0, 3, 1, 2), maps[2])

        model.reset_classifier(0)
        assert torch.equal(model(x), pooled) and model.num_classes == 0
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
        model.reset_classifier(3, "")
        dense = model(x)
        assert dense.shape == ((2, 3, 2, 3) if model.output_fmt == "NCHW" else (2, 2, 3, 3))
        model.reset_classifier(5, "max")
        assert model(x).shape == (2, 5)
        weight = model.get_classifier().weight
        assert weight.abs().max() < 0.12 and abs(weight.std() - 0.02) < 0.01


@each_model
def test_features_only(name: str) -> None:
    model = shrunk(name, features_only=True).eval()
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    maps = model(torch.randn(1, 3, 64, 96))
    channels = model.feature_info.channels()
    assert [m.shape for m in maps] == [(1, c, 16 >> i, 24 >> i) for i, c in enumerate(channels)]
    two = shrunk(name, features_only=True, out_indices=(1, 2))
    assert two.feature_info.reduction() == [8, 16] and len(two(torch.randn(1, 3, 64, 96))) == 2
    assert not any(key.startswith(("model.layers.3", "layers.3")) for key in two.state_dict())


def test_the_tiny_model_at_225_by_180_has_the_shapes_of_the_docs() -> None:
    model = timm.create_model("vmamba_tiny_s1l8", features_only=True).eval()
    with torch.no_grad():
        shapes = [list(m.shape[1:]) for m in model(torch.randn(1, 3, 225, 180))]
    rows = re.findall(r"^\| \d \| \d+ \| [\dx ]+ \| (\d+) x (\d+) x (\d+) \|$", DOCS, re.MULTILINE)
    assert shapes == [[int(n) for n in row] for row in rows] and len(shapes) == 4


@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_image_channels_and_no_head(in_chans: int) -> None:
    model = shrunk("vmamba_tiny_s1l8", in_chans=in_chans)
    assert model(torch.randn(2, in_chans, 40, 33)).shape == (2, 7)
    headless = timm.create_model("vmamba_tiny_s1l8", depths=(1, 1), dims=16, num_classes=0, global_pool="")
    assert headless(torch.randn(2, 3, 40, 33)).shape == (2, 32, 5, 5)


@pytest.mark.parametrize("stem", ["v1", "v2"])
@pytest.mark.parametrize("down", ["v1", "v2", "v3"])
@pytest.mark.parametrize("size", [(37, 50), (225, 180), (96, 160)])
def test_any_size_in_both_layouts(stem: str, down: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    kwargs = {**NANO, "depths": (1, 1, 1, 1), "downsample_version": down, "patchembed_version": stem}
    kwargs.pop("num_classes")
    first, last = Backbone(**kwargs).eval(), Backbone(**{**kwargs, "norm_layer": "ln"}).eval()
    last.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        a, b = first(x), last(x)
    for i, (left, right) in enumerate(zip(a, b)):
        assert left.shape[2:] == tuple(first.stage_sizes(n)[i] for n in size)
        assert left.is_contiguous() and right.is_contiguous()
        assert torch.allclose(left, right, atol=2e-5)


@pytest.mark.parametrize(
    "stem, down, patch, least",
    [("v1", "v1", 4, 4), ("v1", "v2", 4, 32), ("v2", "v3", 4, 1), ("v2", "v2", 4, 29), ("v2", "v3", 8, 11)],
)
def test_small_images_work_down_to_a_named_least_size(stem: str, down: str, patch: int, least: int) -> None:
    model = VSSM(**{**NANO, "downsample_version": down, "patchembed_version": stem, "patch_size": patch}).eval()
    assert model.least_size == least
    with torch.no_grad():
        assert model(torch.randn(2, 3, least, least + 3)).isfinite().all()
        assert model(torch.randn(0, 3, 64, 64)).shape == (0, 10)
        if least > 1:
            with pytest.raises(ValueError, match=rf"at least {least}x{least}, got \(2, 3, {least - 1}, 64\)"):
                model(torch.randn(2, 3, least - 1, 64))
    for wrong in (torch.randn(3, 64, 64), torch.randn(2, 1, 64, 64)):
        with pytest.raises(ValueError, match=r"expected images \[B, 3, H, W\]"):
            model(wrong)


def test_group_matcher_orders_the_parameters_from_stem_to_head() -> None:
    model = timm.create_model("vmamba_tiny_s1l8", depths=(2, 1), dims=8, posembed=True)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == dict(model.named_parameters()).keys()
    keys = ["pos_embed", "layers.0.blocks.0.op.A_logs", "layers.0.blocks.1.norm.bias", "layers.1.blocks.0.op.Ds"]
    assert [groups[key] for key in keys] == [0, 1, 2, 3] and groups["classifier.head.weight"] == 4
    assert groups["layers.0.downsample.1.weight"] == 2 and groups["classifier.norm.weight"] == 3
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert [coarse[key] for key in keys] == [0, 1, 1, 2]
    assert model.no_weight_decay() == {"pos_embed"}


def test_default_forward_type_is_the_published_design_and_options_reach_the_mixer() -> None:
    model = VSSM(depths=(1,), dims=16)
    assert model.layers[0].blocks[0].op.options == ForwardType(gate=False)
    assert isinstance(model.layers[0].blocks[0].op, SS2D) and not model.channel_first


def test_another_token_mixer_gets_the_published_arguments() -> None:
    seen = {}

    class Mixer(nn.Module):
        def __init__(self, **kwargs) -> None:
            super().__init__()
            seen.update(kwargs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -x

    model = VSSM(**NANO, _SS2D=Mixer)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    assert {"d_model", "d_state", "ssm_ratio", "dt_rank", "act_layer", "d_conv", "conv_bias", "dropout"} <= seen.keys()
    assert {"initialize", "forward_type", "channel_first"} <= seen.keys() and "device" not in seen


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: VSSM(mlp_ration=3), ["TypeError", "'mlp_ration'", "Did you mean 'mlp_ratio'?"]),
        (lambda: Backbone(out_indexes=(0,)), ["TypeError", "Did you mean 'out_indices'?"]),
        (lambda: VSSM(ssm_rank_ratio=2.0), ["TypeError", "ssm_rank_ratio", "ssm_dt_rank"]),
        (lambda: timm.create_model("vmamba_tiny_s1l8", depth=(1, 1)), ["TypeError", "Did you mean 'depths'?"]),
        (lambda: VSSM(norm_layer="ln3d"), ["norm_layer", "ln, ln2d, bn", "Did you mean 'ln2d'?"]),
        (lambda: VSSM(ssm_act_layer="swish"), ["ssm_act_layer", "silu"]),
        (lambda: VSSM(mlp_act_layer="gleu"), ["mlp_act_layer", "Did you mean 'gelu'?"]),
        (lambda: VSSM(downsample_version="v4"), ["downsample_version", "v1, v2, v3, none"]),
        (lambda: VSSM(patchembed_version="v3"), ["patchembed_version", "v1, v2"]),
        (lambda: VSSM(downsample_version="none"), ["dims", "'none'"]),
        (lambda: VSSM(ssm_init="v3"), ["ssm_init", "v0, v1, v2"]),
        (lambda: VSSM(forward_type="v05_noy"), ["forward_type", "Did you mean 'v05_noz'?"]),
        (lambda: VSSM(forward_type="v05_nozz_onone"), ["forward_type", "Did you mean 'v05_noz_onnone'?"]),
        (lambda: VSSM(dims=(8, 16)), ["dims, depths", "[8, 16]"]),
        (lambda: VSSM(global_pool="mean"), ["global_pool", "'avg'"]),
        (lambda: VSSM(patchembed_version="v2", patch_size=1), ["patch_size", "'v1'"]),
        (lambda: VSSM(posembed=True, imgsize=2), ["imgsize", "patch_size 4"]),
        (lambda: Backbone(out_indices=(0, 4)), ["out_indices", "stages 0..3"]),
        (lambda: Backbone((0,), depths=(1,), dims=16).reset_classifier(5), ["Backbone has no classifier"]),
        (lambda: timm.create_model("vmamba_tiny_0229", pretrained=True), ["pretrained", "load_weights"]),
        (lambda: VSSM(depths=(1,), dims=16).set_input_size(64, patch_size=8), ["patch_size", "fixed at 4"]),
    ],
)
def test_bad_arguments_are_one_line_with_the_nearest_name(make, words: list[str]) -> None:
    with pytest.raises(TypeError if "TypeError" in words else ValueError) as error:
        make()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words if word != "TypeError"), message


@pytest.mark.parametrize(
    "wrong",
    [
        *({"depths": d} for d in ((1, 0), (1, 1.5), (-1,), 2, "22", (True,))),
        *({"dims": d} for d in (0, -8, (16, 0, 16, 16), 16.0, "16", None)),
        *({"patch_size": p} for p in (0, -4, 4.0, "4", (4, 4))),
        *({"patch_size": p, "patchembed_version": "v2"} for p in (1, 3, 5)),
        *({"ssm_d_state": n} for n in (0, -1, 257, 1.0, "auto")),
        *({"ssm_conv": k} for k in (2, 4, 3.0, "3", (3, 3))),
        *({name: r} for name in ("ssm_ratio", "mlp_ratio") for r in (-1.0, "2", None, float("nan"))),
        *({"drop_path_rate": r} for r in (-0.1, 1.0, 1.5, "0.1", float("nan"))),
        *({name: v} for name in ("patchembed_version", "downsample_version", "norm_layer") for v in (2, None)),
        {"norm_layer": nn.LayerNorm},
    ],
    ids=str,
)
def test_values_that_cannot_work_are_refused_before_anything_is_built(wrong: dict) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(wrong))}: ") as error:
        VSSM(**wrong, device="meta")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "right",
    [
        *({"ssm_conv": k} for k in (-1, 0, 1, 5)),
        {"ssm_d_state": 256},
        {"mlp_ratio": 0},
        {"ssm_ratio": 0},
        {"drop_path_rate": 0},
        {"patch_size": 1},
        {"patch_size": 6, "patchembed_version": "v2"},
    ],
    ids=str,
)
def test_values_at_the_edge_work(right: dict) -> None:
    model = VSSM(depths=(1, 1), dims=8, num_classes=3, **right)
    assert model(torch.randn(1, 3, 24, 24)).isfinite().all()


def test_a_suggested_forward_type_is_one_that_parses() -> None:
    with pytest.raises(UserError, match="unknown 'v05_noz_nozz'") as error:
        VSSM(forward_type="v05_noz_nozz")
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize("operator", ["ss2d", "selective_scan"])
def test_a_backend_that_does_not_serve_the_device_is_refused(operator: str) -> None:
    with pytest.raises(ValueError, match="'cpu' runs on cpu, and the tensors are on cuda"):
        require(operator, "cpu", "cuda")
