"""Parity with the published Vim and FastVim: every record of keys, outputs and gradients, by every way to scan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from vmamba.models import (
    ChannelVim,
    FastChannelVim,
    FastChannelVim2d,
    FastMaskVim,
    FastVim,
    Vim,
    VimLN,
    VimMAE,
)
from vmamba_kernels.backends import require

from .golden_checks import assert_close, check_classifier, check_gradients, check_keys

DATA = Path(__file__).parents[1] / "data" / "golden"
KINDS = {
    "vim/mini_": Vim,
    "fastvim/mini_fastvim_": FastVim,
    "fastvim/mini_vim_": VimLN,
    "fastvim/mini_fastmaskvim": FastMaskVim,
    "fastvim/mini_vimmae": VimMAE,
    "fastvim/mini_fcv2d": FastChannelVim2d,
    "fastvim/mini_fcv_": FastChannelVim,
    "fastvim/mini_cv": ChannelVim,
}
NAMES = {
    "fastvim_tiny": "fastvim_tiny",
    "vimln_tiny": "vim_ln_tiny",
    "fastmaskvim_base": "fastmaskvim_base",
    "fastchannelvim_small16": "fastchannelvim_small_16",
}
RECORDS = sorted(path for family in ("vim", "fastvim") for path in (DATA / family).glob("*.npz"))
MINI = [path for path in RECORDS if path.stem.startswith("mini_")]
FULL = [path for path in RECORDS if path not in MINI]
AUTOENCODERS = [path for path in RECORDS if "mae" in path.stem or "mask" in path.stem]
assert len(MINI) == 41 and len(FULL) == 5 and len(AUTOENCODERS) == 6


def title(path: Path) -> str:
    return f"{path.parent.name}-{path.stem.removesuffix('_64x64').removesuffix('_224x224')}"


def build(path: Path, record: Any, **ssm_cfg: Any) -> nn.Module:
    """The network of a record, with further arguments of its mixers."""
    kwargs = json.loads(str(record["kwargs"]))
    if isinstance(kwargs, Mapping):
        kwargs["ssm_cfg"] = {**kwargs.get("ssm_cfg", {}), **ssm_cfg}
        for start, kind in KINDS.items():
            if f"{path.parent.name}/{path.stem}".startswith(start):
                return kind(**kwargs)
        return timm.create_model(NAMES[path.stem.removesuffix("_224x224")], **kwargs)
    return timm.create_model(kwargs, drop_path_rate=0.0, ssm_cfg=ssm_cfg)


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend that every operator of the mixers has."""
    for operator in ("causal_conv1d", "selective_scan", "pooled_scan"):
        try:
            require(operator, request.param, "cpu")
        except RuntimeError as why:
            pytest.skip(str(why))
    return request.param


def check(path: Path, golden: ModuleType, device: str | torch.device = "cpu", **ssm_cfg: Any) -> None:
    """Keys, outputs and gradients of the network of a record."""
    record = np.load(path)
    model = build(path, record, **ssm_cfg)
    if path in AUTOENCODERS:
        check_autoencoder(model, record, golden, device)
    else:
        check_classifier(model, record, golden, device)


def check_autoencoder(model: Any, record: Any, golden: ModuleType, device: str | torch.device) -> None:
    check_keys(model, record)
    model = golden.fill(model).to(device)
    shape = tuple(record["input_shape"])
    noise = golden.mask_noise((shape[0], shape[2] * shape[3] // model.patch_size**2))
    loss, predicted, mask = model(golden.image(shape).to(device), noise=noise.to(device))
    assert mask.tolist() == record["mask"].tolist()
    assert_close("predicted", predicted[:, :8], record["output"])
    assert abs(loss.item() - float(record["loss"])) <= 1e-5 * float(record["loss"])
    if "grad_norms" in record:
        loss.backward()
        check_gradients(model, record)


@pytest.mark.parametrize("path", MINI, ids=title)
def test_record(path: Path, golden: ModuleType, backend: str) -> None:
    check(path, golden, backend=backend)


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[pytest.mark.slow] if "base" in path.stem else []) for path in FULL], ids=title
)
def test_record_of_a_published_size(path: Path, golden: ModuleType) -> None:
    check(path, golden)


@pytest.mark.parametrize("path", [path for path in MINI if "fastvim_" in path.stem], ids=title)
@pytest.mark.parametrize("use_fast_path", [True, False])
def test_fused_and_plain_pooled_path(path: Path, golden: ModuleType, use_fast_path: bool) -> None:
    """As published but for the missing LayerNorm, whose fused path left the gate out; here every path has it."""
    check(path, golden, use_fast_path=use_fast_path)


@pytest.mark.gpu
@pytest.mark.parametrize("path", RECORDS, ids=title)
def test_on_gpu(path: Path, golden: ModuleType, gpu: torch.device) -> None:
    check(path, golden, gpu)
