"""The counts of Vim and FastVim: the closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vmamba
from vmamba.counting import count_model
from vmamba.models import FastVim, Vim, VimLN

from .test_published_figures import fvcore_total

SMALL: dict[str, Any] = dict(img_size=16, patch_size=4, depth=3, embed_dim=16, num_classes=7)


def closed_form(model: Any, height: int, width: int) -> int:
    """The MACs of one image, term by term."""
    rows, columns = model.stage_sizes(height)[0], model.stage_sizes(width)[0]
    dim, mixer = model.embed_dim, model.layers[0].mixer
    inner, rank, states, taps = mixer.d_inner, mixer.dt_rank, mixer.d_state, mixer.conv1d.weight.shape[2]
    length = rows * columns + (model.class_token != "none")
    total = rows * columns * dim * model.in_chans * model.patch_embed.patch_size**2 + 4 * length * dim
    for number in range(len(model.layers)):
        steps = (columns if number % 2 else rows) if isinstance(model, FastVim) else length
        total += length * (4 * dim + 2 * dim * inner + inner * dim)
        total += 2 * length * inner * (taps + 1)  # convolutions and skips of both directions
        total += 2 * steps * inner * (rank + 2 * states + rank + 9 * states)
        total += 0 if isinstance(mixer.layernorm, torch.nn.Identity) else 5 * length * inner
    return total + dim * model.num_classes


@pytest.mark.parametrize("name", ["vim_tiny", "vim_tiny_stride8", "fastvim_tiny", "vim_ln_tiny"])
@pytest.mark.parametrize("size", [(224, 224), (112, 160)])
def test_three_blocks_of_published_models(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = vmamba.create_model(name, depth=3)
    count = count_model(model, size)
    assert count.macs == closed_form(model, *size) and not count.uncovered
    assert count_model(model, size, batch=2).macs == 2 * count.macs


def test_the_plain_path_counts_the_same() -> None:
    counts = {count_model(FastVim(**SMALL, ssm_cfg=dict(use_fast_path=fast)), 16).macs for fast in (True, False)}
    assert len(counts) == 1


KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "rope": (Vim, dict(if_rope=True, if_rope_residual=True)),
    "vim-ln": (VimLN, {}),
    "fastvim": (FastVim, {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_fvcore_with_our_handlers_gives_the_same_sum(kind: str) -> None:
    network, options = KINDS[kind]
    model = network(**{**SMALL, "embed_dim": 32, **options})
    count = count_model(model, (20, 24), batch=2)
    assert count.macs > 0 and not count.uncovered
    assert fvcore_total(model, torch.zeros(2, 3, 20, 24)) == count.macs
