"""The counts of every model of ours: the published figures, the closed forms, and fvcore's sum with our handlers."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

import vmamba
from vmamba.counting import count_model, fvcore_handlers
from vmamba.models import parse_forward_type
from vmamba.models.vssm import VSSM, Backbone

# Source: the tables of github.com/MzeroMiko/VMamba, reproduced; parameters and billions of MACs at 224 x 224.
PUBLISHED = {
    "vanilla_vmamba_tiny": (22_893_448, "5.6269"),
    "vanilla_vmamba_small": (44_417_416, "11.2315"),
    "vanilla_vmamba_base": (76_254_056, "18.0"),
    "vmamba_tiny_s2l5": (30_705_832, "4.857742"),
    "vmamba_small_s2l15": (50_147_752, "8.715775"),
    "vmamba_base_s2l15": (88_557_800, "15.358944"),
    "vmamba_tiny_s1l8": (30_249_064, "4.905610"),
    "vmamba_small_s1l20": (49_012_840, "8.612211"),
    "vmamba_base_s1l20": (86_614_504, "15.220860"),
    "vmamba_tiny_0220": (32_484_904, "5"),
    "vmamba_tiny_0229": (28_761_640, "4.5"),
    "vmamba_tiny_0229flex": (28_761_640, "4.5"),
    "vmamba_tiny_m2": (25_340_296, ""),
    "vmamba_small_m2": (39_079_816, ""),
    "vmamba_base_m2": (67_527_528, ""),
}


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return vmamba.create_model(name, **kwargs)


def closed_form(model: VSSM, height: int, width: int) -> int:
    """The MACs of a published VSSM by the family's formulas, with K = 4 and one image of any size."""
    op = model.layers[0].blocks[0].op
    sizes = [h * w for h, w in zip(model.stage_sizes(height), model.stage_sizes(width), strict=True)]
    first, start = model.dims[0], sizes[0]
    if model.versions[0] == "v1":
        total = 48 * first * start + 5 * first * start
    else:
        half = math.ceil(height / 2) * math.ceil(width / 2)
        total = (27 + 5) * (first // 2) * half + 9 * (first // 2) * first * start + 5 * first * start
    for i, (dim, depth, length) in enumerate(zip(model.dims, model.depths, sizes, strict=True)):
        inner, rank, states = int(op.d_inner * dim / model.dims[0]), math.ceil(dim / 16), op.d_state
        gate = 2 if op.options.gate else 1
        block = 5 * dim + gate * dim * inner + 9 * inner + 4 * (rank + 2 * states) * inner + 36 * inner * states
        block += 4 * inner + 5 * inner + inner * dim
        if not op.ssd:
            block += 4 * inner * rank
        if model.layers[0].blocks[0].mlp_branch:
            block += 5 * dim + 8 * dim**2
        total += depth * block * length
        if i + 1 < len(sizes):
            after = sizes[i + 1]
            total += (8 * dim**2 + 20 * dim if model.versions[1] == "v1" else 18 * dim**2 + 10 * dim) * after
    return total + 6 * model.dims[-1] * sizes[-1] + model.dims[-1] * model.num_classes


BY_SIZE = [pytest.param(n, marks=[] if "tiny" in n else [pytest.mark.slow]) for n in sorted(PUBLISHED)]


@pytest.mark.parametrize("name", BY_SIZE)
def test_the_published_figures(name):
    parameters, gflops = PUBLISHED[name]
    model = on_meta(name)
    count = count_model(model)
    assert count.parameters == count.trainable == parameters
    decimals = len(gflops.partition(".")[2])
    assert not gflops or f"{count.gflops:.{decimals}f}" == gflops
    assert count.macs == closed_form(model, 224, 224)
    assert not count.uncovered, "an operator runs outside every layer with a rule"


def test_every_model_has_a_row():
    assert set(vmamba.list_models("*vmamba*")) == set(PUBLISHED)


@pytest.mark.parametrize("name", ["vanilla_vmamba_tiny", "vmamba_tiny_s1l8", "vmamba_tiny_m2", "vmamba_tiny_0220"])
@pytest.mark.parametrize("size", [(97, 130)])
def test_any_size_and_batch(name, size):
    model = on_meta(name)
    one, three = count_model(model, size), count_model(model, size, batch=3)
    assert one.macs == closed_form(model, *size)
    assert three.macs == 3 * one.macs and three.gflops == one.gflops
    assert three.outputs["classifier.head"] == ((3, 1000),)


SMALL = dict(depths=(1, 1), dims=16, num_classes=7)
KINDS = {
    "vanilla": dict(forward_type="v0", mlp_ratio=0.0, downsample_version="v1"),
    "channel-first": dict(norm_layer="ln2d", ssm_d_state=1, downsample_version="v3", patchembed_version="v2"),
    "batch-norm": dict(norm_layer="bn"),
    "gate": dict(forward_type="v05"),
    "bidi": dict(forward_type="v052d_noz"),
    "cascade": dict(forward_type="v052dc_noz"),
    "no-norm": dict(forward_type="v05_onnone_noz", gmlp=True),
    "cnorm": dict(forward_type="v05_oncnorm_noz"),
    "no-ssm": dict(ssm_ratio=0.0),
    "mamba2": dict(forward_type="m0_noz", ssm_init="v2", ssm_d_state=8),
    "pos": dict(posembed=True, imgsize=32),
}


def fvcore_total(model, x) -> int:
    analysis = FlopCountAnalysis(model.eval(), x).set_op_handle(**fvcore_handlers())
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


@pytest.mark.parametrize("kind", KINDS)
def test_fvcore_with_our_handlers_gives_the_same_sum(kind):
    model = VSSM(**SMALL, **KINDS[kind])
    count = count_model(model, (33, 47), batch=2)
    assert count.macs > 0 and not count.uncovered
    assert fvcore_total(model, torch.zeros(2, 3, 33, 47)) == count.macs


def test_the_way_to_scan_does_not_change_the_count():
    options = parse_forward_type("v05_noz")
    models = [VSSM(**SMALL, forward_type=replace(options, fused=fused)) for fused in (True, False)]
    counts = {count_model(model, 32).macs for model in models}
    counts |= {fvcore_total(model, torch.zeros(1, 3, 32, 32)) for model in models}
    assert len(counts) == 1


def test_a_published_model_by_fvcore():
    model = vmamba.create_model("vmamba_tiny_s1l8").eval()
    with torch.inference_mode():
        total = fvcore_total(model, torch.zeros(1, 3, 64, 96))
    assert total == count_model(model, (64, 96)).macs == closed_form(model, 64, 96)


def test_the_backbones():
    for kwargs, expected in (
        (dict(depths=(2, 2, 8, 2), ssm_ratio=1.0), 29_481_408),
        (dict(depths=(2, 2, 5, 2), ssm_ratio=2.0), 29_938_176),
    ):
        shared = dict(ssm_d_state=1, ssm_conv_bias=False, downsample_version="v3", patchembed_version="v2")
        with torch.device("meta"):
            model = Backbone(dims=96, norm_layer="ln2d", **shared, **kwargs)
        count = count_model(model, 64)
        assert count.parameters == expected
        assert [s[1] for s in count.outputs[""]] == [96, 192, 384, 768]


def test_the_table_of_the_docs():
    text = (Path(__file__).resolve().parents[2] / "docs" / "using.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([\d,]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    stated = {name: (int(n.replace(",", "")), g) for names, n, g in rows for name in re.findall(r"\w+", names)}
    assert {name: n for name, (n, _) in stated.items()} == {name: n for name, (n, _) in PUBLISHED.items()}
    for name, (_, gflops) in stated.items():
        assert f"{closed_form(on_meta(name), 224, 224) / 1e9:.6f}" == gflops
