"""Vim's mixer by one operator: the numbers of its plain operators, and when it steps aside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vmamba.models.fastvim_mixer import FastVimMixer
from vmamba.models.vim_mixer import VimMixer
from vmamba_kernels.mamba_inner import compiled


class Plain(VimMixer):
    """The mixer by its plain operators."""

    def _fuses(self, xz: Tensor) -> bool:
        return False


def pair(**options: Any) -> tuple[VimMixer, Plain]:
    torch.manual_seed(0)
    mixer, same = VimMixer(24, **options), Plain(24, **options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    same.load_state_dict(mixer.state_dict())
    return mixer, same


def results(mixer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = mixer(x)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *mixer.parameters()])]


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(bimamba_type="none", conv_bias=False, bias=True),
        dict(if_divide_out=False, d_state=5, d_conv=3, init_layer_scale=0.5),
    ],
    ids=str,
)
def test_one_operator_gives_the_numbers_of_many(options: dict[str, Any]) -> None:
    if why := compiled.missing("cpu"):
        pytest.skip(why)
    mixer, plain = pair(**options)
    x = torch.randn(2, 37, 24)
    assert mixer._fuses(mixer.in_proj(x))
    for got, wanted in zip(results(mixer, x), results(plain, x), strict=True):
        assert (got - wanted).norm() <= 1e-5 * wanted.norm()
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), plain(x))


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


ASIDE: dict[str, Callable[[VimMixer], object]] = {
    "a hook": lambda m: m.x_proj_b.register_forward_hook(lambda *_: None),
    "another layer": lambda m: setattr(m, "dt_proj", Doubled(m.dt_rank, m.d_inner)),
    "another type": lambda m: m.conv1d.double(),
    "the reference": lambda m: setattr(m, "backend", "reference"),
}


@pytest.mark.parametrize("what", ASIDE)
def test_it_steps_aside_for(what: str) -> None:
    mixer, _ = pair()
    ASIDE[what](mixer)
    assert not mixer._fuses(torch.zeros(1, 3, 96))


def test_it_steps_aside_for_other_mixers_and_in_half_precision() -> None:
    xz = torch.zeros(1, 3, 96)
    for other in (VimMixer(24, bimamba_type="v1"), VimMixer(24, norm_after_scan=True), FastVimMixer(24)):
        assert not other._fuses(xz)
    mixer, plain = pair()
    assert not mixer._fuses(xz.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(1, 5, 24)
        assert mixer(x).dtype is torch.bfloat16 and torch.equal(mixer(x), plain(x))
