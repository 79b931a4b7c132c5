"""Parity with the published VMamba: every record of keys, outputs, maps and gradients, by every way to scan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from vmamba.models.forward_type import parse_forward_type
from vmamba.models.vssm import VSSM, Backbone

from .golden_checks import assert_close, check_classifier

RECORDS = sorted((Path(__file__).parents[1] / "data" / "golden" / "vmamba").glob("*.npz"))
assert len(RECORDS) == 36

MAMBA2 = [path for path in RECORDS if "_m2_" in path.stem]
record_of = pytest.mark.parametrize("path", [p for p in RECORDS if p not in MAMBA2], ids=lambda p: p.stem)
mamba2_record_of = pytest.mark.parametrize("path", MAMBA2, ids=lambda p: p.stem)


def read(path: Path, scan: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The record and its constructor arguments, for one way to scan."""
    record = np.load(path)
    kwargs = json.loads(str(record["kwargs"]))
    if scan:
        kwargs["forward_type"] = replace(parse_forward_type(kwargs["forward_type"]), **scan)
    return record, kwargs


def check_maps(path: Path, golden: ModuleType, scan: dict[str, Any], device: str | torch.device) -> None:
    record, kwargs = read(path, scan)
    kwargs.pop("num_classes", None)
    model = golden.fill(Backbone(**kwargs)).to(device)
    with torch.no_grad():
        maps = model(golden.image(tuple(record["input_shape"])).to(device))
    assert len(maps) == 4
    for i, found in enumerate(maps):
        sample = record[f"feature{i}_sample"]
        assert list(found.shape) == record[f"feature{i}_shape"].tolist() and found.is_contiguous()
        assert_close(f"map {i}", found[0, :4], sample)
        assert_close(f"mean of map {i}", found.mean((0, 2, 3)), record[f"feature{i}_channel_mean"], sample.std())


@record_of
def test_classifier(path: Path, golden: ModuleType, scan: dict[str, Any]) -> None:
    record, kwargs = read(path, scan)
    check_classifier(VSSM(**kwargs), record, golden)


@pytest.mark.filterwarnings("ignore:Backbone leaves pos_embed out")
@record_of
def test_maps(path: Path, golden: ModuleType, scan: dict[str, Any]) -> None:
    check_maps(path, golden, scan, "cpu")


@mamba2_record_of
@pytest.mark.parametrize("backend", [None, "reference"])
def test_mamba2(path: Path, golden: ModuleType, backend: str | None) -> None:
    record, kwargs = read(path, dict(backend=backend))
    check_classifier(VSSM(**kwargs), record, golden)
    check_maps(path, golden, dict(backend=backend), "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_on_gpu(path: Path, golden: ModuleType, gpu: torch.device) -> None:
    record, kwargs = read(path, {})
    check_classifier(VSSM(**kwargs), record, golden, gpu)
    check_maps(path, golden, {}, gpu)
