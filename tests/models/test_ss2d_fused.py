"""SS2D through the fused operator and through the plain ones: the same numbers, and less to remember."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vmamba.models import SS2D
from vmamba.models.forward_type import parse_forward_type
from vmamba_kernels.ss2d import fuses

needs_kernel = pytest.mark.skipif(not fuses(torch.float32, "cpu"), reason="ss2d has no compiled kernel for the CPU")
FORWARD_TYPES = ("v05_noz", "v0", "v051d_noz", "v052d_noz", "v052d3_noz", "v052dc_noz", "v05_onsoftmax_noz")


def pair(forward_type: str, **options) -> tuple[SS2D, SS2D]:
    """The same mixer, fused and not."""
    named = parse_forward_type(forward_type)
    torch.manual_seed(0)
    fused = SS2D(24, forward_type=named, **options)
    plain = SS2D(24, forward_type=replace(named, fused=False), **options)
    plain.load_state_dict(fused.state_dict())
    return fused, plain


def run(module: SS2D, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    y.float().square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@needs_kernel
@pytest.mark.parametrize("d_state", [1, 16])
@pytest.mark.parametrize("forward_type", FORWARD_TYPES)
def test_the_same_numbers(forward_type: str, d_state: int) -> None:
    fused, plain = pair(forward_type, d_state=d_state)
    x = torch.randn(2, 5, 7, 24)
    for got, expected in zip(run(fused, x), run(plain, x), strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=2e-5 * expected.abs().max().item())


@needs_kernel
def test_under_autocast_and_compiled() -> None:
    fused, plain = pair("v05_noz", d_state=1)
    x = torch.randn(2, 6, 5, 24)
    exact = plain(x)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = fused(x), plain(x)
    assert ours.dtype == theirs.dtype
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()
    compiled = torch.compile(fused, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((6, 5), (3, 8)):
        x = torch.randn(2, *size, 24)
        assert torch.allclose(compiled(x), fused(x), atol=1e-6)


@needs_kernel
def test_remembers_less() -> None:
    x = torch.randn(2, 16, 16, 24)

    def remembered(module: SS2D) -> int:
        seen: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            seen[t.data_ptr()] = t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            module(x.requires_grad_()).sum().backward()
        return sum(seen.values())

    fused, plain = (remembered(module) for module in pair("v05_noz", d_state=1))
    assert fused < 0.6 * plain, (fused, plain)


def test_named_backends_are_honoured() -> None:
    assert fuses(torch.float32, "cpu", "reference") and not fuses(torch.float32, "cpu", "no such")
    assert not fuses(torch.float64, "cpu") and not fuses(torch.float32, "meta")
