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


def assert_close(name: str, got: torch.Tensor, expected: np.ndarray, scale: float | None = None) -> None:
    """Within 1e-4 of the standard deviation."""
    assert tuple(got.shape) == expected.shape, name
    error = np.abs(got.detach().cpu().numpy() - expected).max()
    assert error <= 1e-4 * (scale or expected.std()), f"{name}: off by {error:.2e}"


def check_classifier(path: Path, golden: ModuleType, scan: dict[str, Any], device: str | torch.device) -> None:
    record, kwargs = read(path, scan)
    model = golden.fill(VSSM(**kwargs)).to(device)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == json.loads(str(record["keys"]))
    assert sum(p.numel() for p in model.parameters()) == int(record["num_params"])

    x = golden.image(tuple(record["input_shape"])).to(device).requires_grad_()
    output = model(x)
    assert_close("output", output, record["output"])
    if "grad_norms" not in record:
        return
    golden.probe_loss(output.cpu()).backward()
    expected = json.loads(str(record["grad_norms"]))
    parameters = dict(model.named_parameters())
    assert expected.keys() <= parameters.keys()
    for name, parameter in parameters.items():
        norm = 0.0 if parameter.grad is None else float(parameter.grad.norm())
        wanted = expected.get(name, 0.0)
        assert abs(norm - wanted) <= 1e-3 * wanted + 1e-6, f"{name}: gradient norm {norm}, published {wanted}"
    norm, wanted = float(x.grad.norm()), float(record["grad_input_norm"])
    assert abs(norm - wanted) <= 1e-3 * wanted + 1e-6
    assert_close("input gradient", x.grad[0, 0], record["grad_input_sample"])


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
    check_classifier(path, golden, scan, "cpu")


@pytest.mark.filterwarnings("ignore:Backbone leaves pos_embed out")
@record_of
def test_maps(path: Path, golden: ModuleType, scan: dict[str, Any]) -> None:
    check_maps(path, golden, scan, "cpu")


@mamba2_record_of
@pytest.mark.parametrize("backend", [None, "reference"])
def test_mamba2(path: Path, golden: ModuleType, backend: str | None) -> None:
    check_classifier(path, golden, dict(backend=backend), "cpu")
    check_maps(path, golden, dict(backend=backend), "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_on_gpu(path: Path, golden: ModuleType, gpu: torch.device) -> None:
    check_classifier(path, golden, {}, gpu)
    check_maps(path, golden, {}, gpu)
