"""The models of channels: counts, orders of the tokens, sampling of channels, and timm's interface."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vmamba.errors import UserError
from vmamba.models import ChannelVim, FastChannelVim, FastChannelVim2d
from vmamba_kernels import pool_tokens

PARAMETERS = {
    "fastchannelvim_small_16": 25_316_129,
    "fastchannelvim_small_8": 25_468_193,
    "channelvim_small_16": 25_316_513,
    "channelvim_small_8": 25_468_577,
}
NANO: dict[str, Any] = dict(img_size=(8, 12), patch_size=4, depth=3, embed_dim=16, channels=5, num_classes=4)
each_kind = pytest.mark.parametrize("kind", [FastChannelVim, FastChannelVim2d, ChannelVim])


def images(channels: int = 5, height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name: str) -> None:
    model: Any = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model.num_classes == 161 and model.in_chans == 8 and model.hcs
    token = "noclstok" if "fast" in name else "midclstok"
    long = f"channelvim_small_patch16_224_final_pool_mean_abs_pos_embed_with_{token}_div2"
    other = timm.create_model(long, device="meta", depth=1, channels=3, num_classes=2)
    assert type(other) is type(model) and other.in_chans == 3 and other.num_classes == 2


@each_kind
def test_any_channels_sizes_and_gradients(kind: type[nn.Module]) -> None:
    model: Any = kind(**NANO).eval()
    assert model(images(3)).shape == (2, 4)
    assert model(images(5, 16, 8)).shape == (2, 4)
    model(images()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        named = model(images(3), input_channel_order=[0, 1, 2])
        assert torch.equal(named, model(images(3)))
        assert not torch.equal(model(images(3), input_channel_order=[4, 1, 2]), named)
        features, maps = model.forward_intermediates(images())
        assert features.shape[1] == 30 + (kind is ChannelVim) and [m.shape for m in maps] == [(2, 16, 2, 3)] * 3
    with pytest.raises(ValueError, match=r"x: expected images \[B, 1 to 5 channels, H, W\], got \(2, 6, 8, 12\)"):
        model(images(6))
    with pytest.raises(ValueError, match="input_channel_order: expected 3 numbers"):
        model(images(3), input_channel_order=[0, 1])
    for wrong in ([0, 1, 5], [0, 1, -1], [0.0, 0.5, 1.0]):
        with pytest.raises(UserError, match="input_channel_order: expected channels from 0 to 4, got "):
            model(images(3), input_channel_order=wrong)
    for mask in ([True, False, True], torch.tensor([True, False, True])):
        with pytest.raises(UserError, match="input_channel_order: expected channels from 0 to 4, got a mask"):
            model(images(3), input_channel_order=mask)


def test_channels_are_named_without_a_look_at_another_device() -> None:
    model = ChannelVim(**NANO, device="meta").eval()
    x = images(3).to("meta")
    for names in ([4, 1, 2], torch.tensor([4, 1, 2]), torch.tensor([4, 1, 2], dtype=torch.uint8, device="meta")):
        assert model(x, input_channel_order=names).shape == (2, 4)
    with torch.device("meta"), pytest.raises(UserError, match=r"from 0 to 4, got \[0, 1, 5\]"):
        model(x, input_channel_order=[0, 1, 5])


@pytest.mark.parametrize("order", ["Channel-First", "Spatial-First"])
def test_tokens_lie_in_the_order_that_is_asked_for(order: str) -> None:
    model = FastChannelVim(**NANO, scan_order=order)
    tokens, sequence = model._embedded(images())
    assert sequence.grid == ((2, 3, 5) if order == "Channel-First" else (5, 2, 3))
    place = (1 * 3 + 2) * 5 + 4 if order == "Channel-First" else (4 * 2 + 1) * 3 + 2
    patch = images()[:, 4, 4:8, 8:12]
    projected = torch.einsum("bij,dij->bd", patch, model.patch_embed.proj.weight[:, 0, 0]) + model.patch_embed.proj.bias
    expected = projected + model.patch_embed.channel_embed.weight[4] + model.pos_embed[0, 5]
    torch.testing.assert_close(tokens[:, place], expected)


def test_what_each_block_pools() -> None:
    axes = [(block.mixer.pooled_axes, block.swaps) for block in FastChannelVim2d(**NANO).layers]
    assert axes == [((1, 2), None), ((1, 2), (0, 1)), ((0, 1), None)]
    axes = [(block.mixer.pooled_axes, block.swaps) for block in FastChannelVim(**NANO).layers]
    assert axes == [(1, None), (1, (0, 1)), (1, None)]
    spatial = FastChannelVim(**NANO, scan_order="Spatial-First")
    assert [(b.mixer.pooled_axes, b.swaps) for b in spatial.layers] == [(2, None), (2, (1, 2)), (2, None)]
    still = FastChannelVim(**NANO, rotate_every_block=False)
    assert [b.swaps for b in still.layers] == [None] * 3
    tokens = torch.randn(1, 2, 30)  # (2, 3, 5): rows, columns, channels
    assert (
        pool_tokens(tokens, (2, 3, 5), 1).shape == (1, 2, 10) and pool_tokens(tokens, (2, 3, 5), (0, 1)).shape[2] == 5
    )


def test_channels_are_sampled_in_training_alone() -> None:
    model = FastChannelVim(**NANO, hcs=True)
    seen = []
    for seed in range(40):
        torch.manual_seed(seed)
        x, names = model.train()._sampled(images(), None)
        assert names is not None and torch.equal(x, images()[:, names]) and len(set(names.tolist())) == len(names)
        seen.append(names.tolist())
    assert {len(names) for names in seen} == {1, 2, 3, 4, 5} and any(names != sorted(names) for names in seen)
    model.sort_channels = True
    assert all(
        names.tolist() == sorted(names.tolist()) for _, names in (model._sampled(images(), None) for _ in range(9))
    )
    given = torch.tensor([4, 3, 1])
    x, names = model._sampled(images(3), given)
    assert names is not None and set(names.tolist()) <= {1, 3, 4}
    assert model.eval()._sampled(images(), None)[1] is None
    assert FastChannelVim(**NANO).train()._sampled(images(), None)[1] is None
    assert model.train()(images()).shape == (2, 4)


def test_initialisation_and_features() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("fastchannelvim_small_16", depth=4, embed_dim=64)
    assert float(model.patch_embed.channel_embed.weight.std()) == pytest.approx(0.02, rel=0.2)
    assert float(model.patch_embed.proj.weight.abs().max()) <= 1 / 16
    only: Any = timm.create_model(
        "fastchannelvim_small_16", depth=4, embed_dim=16, features_only=True, out_indices=(1, 3)
    )
    assert [tuple(m.shape) for m in only.eval()(images(8, 32, 48))] == [(2, 16, 2, 3)] * 2


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(scan_order="Both"), "scan_order: 'Both' is not one of channel-first, spatial-first"),
        (dict(if_rope=True), "if_rope: the tokens of channels have no rotation"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        FastChannelVim(**NANO, **options)
    with pytest.raises(UserError, match="FastChannelVim2d scans Channel-First"):
        FastChannelVim2d(**NANO, scan_order="Spatial-First")
