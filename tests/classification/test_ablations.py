"""The 33 published ablations: each recipe under configs/classification/ablations builds the network it names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from classification.arguments import parse
from classification.checks import ignored_settings
from vmamba.models.from_config import model_from_config, vssm_arguments

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "classification" / "ablations"

V0: dict[str, Any] = dict(depths=[2, 2, 9, 2], ssm_d_state=16, ssm_ratio=2.0, ssm_conv_bias=True, forward_type="v0")
V0 |= dict(mlp_ratio=0.0, norm_layer="ln", downsample_version="v1", patchembed_version="v1")
V2: dict[str, Any] = dict(depths=[2, 2, 5, 2], ssm_d_state=1, ssm_ratio=2.0, ssm_conv_bias=False)
V2 |= dict(forward_type="v05_noz", norm_layer="ln2d", downsample_version="v3", patchembed_version="v2", mlp_ratio=4.0)
V2V = V2 | dict(depths=[2, 2, 8, 2], ssm_ratio=1.0)
A7 = V2 | dict(depths=[2, 2, 2, 2], ssm_conv=-1, forward_type="v05", ssm_d_state=16)
A8 = A7 | dict(depths=[2, 2, 5, 2], ssm_ratio=1.0)
NO_CONV = dict(ssm_conv=-1)
ABLATIONS: dict[str, dict[str, Any]] = {
    "a0": V0,
    "a0seq": V0 | dict(forward_type="v0seq"),
    "a01": V0 | dict(forward_type="v01"),
    "a1": V0 | dict(forward_type="v02"),
    "a2": V0 | dict(forward_type="v04"),
    "a3": V0 | dict(forward_type="v05", norm_layer="ln2d"),
    "a7": A7,
    "a7a": A7 | dict(ssm_ratio=1.0),
    "a8": A8,
    "a9d": A8 | dict(forward_type="v05_noz"),
    "unidi": V2V | dict(forward_type="v051d_noz"),
    "unidi_ndw": V2V | dict(forward_type="v051d_noz") | NO_CONV,
    "bidi": V2V | dict(forward_type="v052d_noz"),
    "bidi_ndw": V2V | dict(forward_type="v052d_noz") | NO_CONV,
    "cas2d": V2V | dict(forward_type="v052dc_noz"),
    "cas2d_ndw": V2V | dict(forward_type="v052dc_noz") | NO_CONV,
    "ndw": V2V | NO_CONV,
    "posndw": V2V | NO_CONV | dict(posembed=True),
    "gelu": V2V | dict(ssm_act_layer="gelu"),
    "relu": V2V | dict(ssm_act_layer="relu"),
    "init1": V2V | dict(ssm_init="v1"),
    "init2": V2V | dict(ssm_init="v2"),
    "onone": V2V | dict(forward_type="v05_onnone_noz"),
    "ondw": V2V | dict(forward_type="v05_ondwconv3_noz"),
    "onsoftmax": V2V | dict(forward_type="v05_onsoftmax_noz"),
    "m2s2h": V2V | dict(ssm_ratio=2.5, mlp_ratio=2.0),
    "m3s1h": V2V | dict(ssm_ratio=1.5, mlp_ratio=3.0),
    "ds2": V2 | dict(ssm_d_state=2),
    "ds4": V2 | dict(ssm_d_state=4),
    "ds8": V2 | dict(ssm_d_state=8, ssm_ratio=1.5),
    "ds16": V2 | dict(ssm_d_state=16, ssm_ratio=1.0),
    "sr1l5": V2 | dict(ssm_ratio=1.0),
    "sr1hl5": V2 | dict(ssm_ratio=1.5),
}
SAME = dict(patch_size=4, in_chans=3, dims=96, ssm_dt_rank="auto", ssm_act_layer="silu", ssm_conv=3, ssm_drop_rate=0.0)
SAME |= dict(ssm_init="v0", mlp_act_layer="gelu", mlp_drop_rate=0.0, gmlp=False, patch_norm=True, posembed=False)
SAME |= dict(num_classes=1000, drop_rate=0.0, drop_path_rate=0.2, use_checkpoint=False, imgsize=224)


def parameters(options: dict[str, Any]) -> int:
    """The number of parameters by the published closed forms, written out for a tiny model of width 96."""
    dims = [96, 192, 384, 768]
    total = 56 * 56 * 96 if options["posembed"] else 0
    total += 48 * 96 + 96 + 2 * 96 if options["patchembed_version"] == "v1" else 27 * 48 + 48 + 2 * 48
    total += 9 * 48 * 96 + 96 + 2 * 96 if options["patchembed_version"] == "v2" else 0
    for D, depth in zip(dims, options["depths"]):
        N, R, inner = options["ssm_d_state"], math.ceil(D / 16), int(options["ssm_ratio"] * D)
        hidden = int(options["mlp_ratio"] * D)
        kind = options["forward_type"]
        block = 2 * D + 4 * (R + 2 * N) * inner + 4 * inner * (N + R + 2) + inner * D
        block += D * inner * (1 if kind.endswith("_noz") else 2)
        block += (9 + options["ssm_conv_bias"]) * inner if options["ssm_conv"] > 1 else 0
        block += {"onnone": 0, "onsoftmax": 0, "ondwconv3": 9}.get(
            kind.split("_")[1] if "_on" in kind else "", 2
        ) * inner
        block += 2 * D + 2 * hidden * D + hidden + D if hidden else 0
        total += depth * block
    down = (lambda D: 8 * D * D + 8 * D) if options["downsample_version"] == "v1" else (lambda D: 18 * D * D + 6 * D)
    return total + sum(map(down, dims[:-1])) + 2 * 768 + 768 * 1000 + 1000


def test_these_are_the_33_recipes() -> None:
    assert len(ABLATIONS) == 33 and {path.stem for path in FOLDER.iterdir()} == set(ABLATIONS)


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_builds_its_network(name: str) -> None:
    config, stated = parse(["--cfg", str(FOLDER / f"{name}.yaml")])
    assert config.MODEL.NAME == f"vssmab_{name}" and ignored_settings(config, stated) == []
    assert all(key.startswith("MODEL.") for key in stated - {"BASE"}), "an ablation changes the model alone"
    options = SAME | ABLATIONS[name]
    assert vssm_arguments(config) == options
    model = model_from_config(config, device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters(options)
    small = model_from_config(config, dims=16, depths=[1, 1], num_classes=3).eval()
    with torch.no_grad():
        logits = small(torch.randn(1, 3, 40, 33))
    assert logits.shape == (1, 3) and logits.isfinite().all() and logits.std() > 0


def test_the_closed_form_gives_the_published_counts() -> None:
    assert parameters(SAME | V0) == 22_893_448
    assert parameters(SAME | V2) == 30_705_832 and parameters(SAME | V2V) == 30_249_064
