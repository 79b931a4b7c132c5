"""Shared by the model tests: the deterministic weights of the parity records, the backends, the devices."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vmamba_kernels.backends import require

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def golden() -> ModuleType:
    """`tests/data/golden/fill.py`: weights and inputs from names and shapes alone."""
    spec = importlib.util.spec_from_file_location("golden_fill", DATA / "golden" / "fill.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(
    params=[("reference", True), ("cpu", True), ("reference", False), ("cpu", False)],
    ids=["reference-fused", "cpu-fused", "reference-plain", "cpu-plain"],
)
def scan(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The options of ForwardType for each way to scan that can run on the CPU here."""
    backend, fused = request.param
    try:
        require("ss2d" if fused else "selective_scan", backend, "cpu")
    except RuntimeError as why:
        pytest.skip(str(why))
    return dict(backend=backend, fused=fused)


@pytest.fixture
def gpu() -> torch.device:
    """The first GPU, with exact float32 products."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")
