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

from vmamba.models import FastVim, Vim, VimLN
from vmamba_kernels.backends import require

from .golden_checks import check_classifier

DATA = Path(__file__).parents[1] / "data" / "golden"
KINDS = {"vim/mini_": Vim, "fastvim/mini_fastvim_": FastVim, "fastvim/mini_vim_": VimLN}
NAMES = {"fastvim_tiny": "fastvim_tiny", "vimln_tiny": "vim_ln_tiny"}
RECORDS = sorted(path for family in ("vim", "fastvim") for path in (DATA / family).glob("*.npz"))
MINI = [path for path in RECORDS if path.stem.startswith("mini_")]
FULL = [path for path in RECORDS if path not in MINI]
assert len(MINI) == 29 and len(FULL) == 3


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


@pytest.mark.parametrize("path", MINI, ids=title)
def test_record(path: Path, golden: ModuleType, backend: str) -> None:
    record = np.load(path)
    check_classifier(build(path, record, backend=backend), record, golden)


@pytest.mark.parametrize("path", FULL, ids=title)
def test_record_of_a_published_size(path: Path, golden: ModuleType) -> None:
    record = np.load(path)
    check_classifier(build(path, record), record, golden)


@pytest.mark.parametrize("path", [path for path in MINI if "fastvim_" in path.stem], ids=title)
@pytest.mark.parametrize("use_fast_path", [True, False])
def test_fused_and_plain_pooled_path(path: Path, golden: ModuleType, use_fast_path: bool) -> None:
    """As published but for the missing LayerNorm, whose fused path left the gate out; here every path has it."""
    record = np.load(path)
    check_classifier(build(path, record, use_fast_path=use_fast_path), record, golden)


@pytest.mark.gpu
@pytest.mark.parametrize("path", RECORDS, ids=title)
def test_on_gpu(path: Path, golden: ModuleType, gpu: torch.device) -> None:
    record = np.load(path)
    check_classifier(build(path, record), record, golden, gpu)
