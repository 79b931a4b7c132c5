"""Every backend of ss2d against float64, beside the reference in the same type: y and all gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vmamba_kernels import backends
from vmamba_kernels.ss2d import ss2d

from .test_ss2d import NAMES, case, error, expected, run
from .triton_interpreter import mend


def places() -> list:
    """(device, backend): every backend where it runs; on a GPU under the mark `gpu`."""
    found = []
    for backend in backends._backends["ss2d"]:
        missing = pytest.mark.skipif(bool(backend.missing()), reason=f"ss2d on {backend.name}: {backend.missing()}")
        if backend.serves("cpu") or "cpu" in backend.on_request:
            found.append(pytest.param("cpu", backend.name, marks=missing))
        if backend.serves("cuda"):
            absent = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
            found.append(pytest.param("cuda", backend.name, marks=[missing, absent, pytest.mark.gpu]))
    return found


@pytest.mark.parametrize(("device", "backend"), places())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("size", "order"), [((3, 5), "cross2d"), ((2, 6), "bidi"), ((1, 7), "rows_both")], ids=["odd", "oblong", "one row"]
)
def test_error_is_at_most_twice_that_of_the_reference(
    device: str, backend: str, dtype: torch.dtype, size: tuple[int, int], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "triton" and device == "cpu":
        mend(monkeypatch)
    tensors: list[Tensor] = case(size=size, order=order, N=1, C=35, R=3, batch=1)
    tensors = [t.to(dtype) for t in tensors[:2]] + tensors[2:]
    dy = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    options = {"order": order, "out_dtype": dtype}
    wanted = expected(tensors, dy, order)
    reference = run(ss2d, tensors, dy, backend="reference", **options)
    got = run(ss2d, [t.to(device) for t in tensors], dy.to(device), backend=backend, **options)
    for name, ours, theirs, true in zip(NAMES, got, reference, wanted, strict=True):
        assert ours.dtype is theirs.dtype, name
        found, bound = error(ours.cpu(), true), error(theirs, true)
        assert found <= 2 * bound + 1e-6, f"{name}: {found:.2e} against {bound:.2e} of the reference"
