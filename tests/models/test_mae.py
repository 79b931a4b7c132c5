"""The masked autoencoders of FastVim and Vim: counts, masks, patches; with nothing masked they are the networks."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vmamba.errors import UserError
from vmamba.models import FastMaskVim, FastVim, VimLN, VimMAE
from vmamba.models.masked_mixer import KeptTokens, MaskedFastVimMixer
from vmamba.models.sincos import sincos_table
from vmamba.weights import load_weights

# All parameters and, of these, those that are learnt.
PARAMETERS = {
    "fastmaskvim_base": 101_428_992,
    "fastmaskvim_large": 343_862_528,
    "fastmaskvim_huge": 705_817_164,
    "vim_mae_base": 101_431_040,
    "vim_mae_large": 343_865_088,
}
NANO: dict[str, Any] = dict(img_size=(16, 24), patch_size=4, depth=4, embed_dim=16)
DECODER: dict[str, Any] = dict(decoder_embed_dim=8, decoder_depth=1)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name: str) -> None:
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    if name == "fastmaskvim_base":
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 101_178_112
    long = "mae_FastVim_" if "fast" in name else "mae_vim_"
    other = timm.create_model(f"{long}{name.rpartition('_')[2]}_dec512d2b", device="meta", depth=1)
    assert type(other) is type(model) and len(other.decoder_blocks) == len(model.decoder_blocks) == 2


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("mirror", [False, True])
def test_with_nothing_masked_the_encoder_is_fastvim(columns: bool, mirror: bool) -> None:
    scan = "colwise" if columns else "rowwise"
    torch.manual_seed(0)
    source = FastMaskVim(**NANO, **DECODER, scanpath_type=scan, mirror_ids=mirror).eval()
    network = FastVim(**NANO, num_classes=0, scanpath_type=scan, global_pool="").eval()
    load_weights(network, source.state_dict(), quiet=True)
    with torch.no_grad():
        kept, places = source.encode(images(), mask_ratio=0.0)
        torch.testing.assert_close(kept, network(images()))
    assert torch.equal(places, torch.arange(24).expand(2, 24))


def test_with_nothing_masked_the_encoder_is_vim() -> None:
    torch.manual_seed(0)
    source = VimMAE(**NANO, **DECODER).eval()
    network = VimLN(**NANO, num_classes=0, global_pool="").eval()
    load_weights(network, source.state_dict(), quiet=True)
    with torch.no_grad():
        torch.testing.assert_close(source.encode(images(), mask_ratio=0.0)[0], network(images()))


@pytest.mark.parametrize("kind", [FastMaskVim, VimMAE])
def test_the_least_noise_is_kept_and_the_loss_is_of_the_hidden_patches(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model: Any = kind(**NANO, **DECODER, norm_pix_loss=False).eval()
    noise = torch.rand(2, 24)
    loss, predicted, mask = model(images(), noise)
    assert predicted.shape == (2, 24, 48) and mask.sum(1).tolist() == [18, 18]
    for sample in range(2):
        least = noise[sample].argsort()[:6]
        assert not mask[sample, least].any()
    errors = ((predicted - model.patchify(images())) ** 2).mean(2)
    torch.testing.assert_close(loss, errors[mask.bool()].mean())
    loss.backward()
    fixed = {name for name, p in model.named_parameters() if p.grad is None}
    assert fixed == {"pos_embed", "decoder_pos_embed"}, "the tables are not learnt"
    hidden = images().clone()
    hidden[:, :, :4, :4] += 1.0
    first = model(hidden, noise)[1]
    changed = (first - predicted).abs().amax((1, 2)) > 1e-6
    assert changed.tolist() == (mask[:, 0] == 0).tolist(), "what is hidden does not reach the network"


def test_hidden_patches_are_counted_in_full_by_a_half_network() -> None:
    torch.manual_seed(0)
    model = FastMaskVim(**{**NANO, "img_size": (16, 72)}, **DECODER)  # 54 of 72 patches hidden
    x = torch.randn(9, 3, 16, 72)
    with torch.autocast("cpu", torch.bfloat16):
        loss, predicted, mask = model(x)
    assert predicted.dtype is torch.bfloat16 and mask.dtype is torch.float32 and mask.sum() == 9 * 54
    errors = (predicted - model.targets(x)).square().mean(2)
    torch.testing.assert_close(loss, errors[mask.bool()].mean(), rtol=1e-5, atol=0)


def test_patches_and_back() -> None:
    model = FastMaskVim(**NANO, **DECODER)
    patches = model.patchify(images())
    assert torch.equal(patches[0, 7], images()[0, :, 4:8, 4:8].permute(1, 2, 0).flatten())
    assert torch.equal(model.unpatchify(patches), images())


def test_targets_of_columns_are_aligned_on_request() -> None:
    model = FastMaskVim(**NANO, **DECODER, scanpath_type="colwise", norm_pix_loss=False)
    patches = model.patchify(images())
    own = patches.unflatten(1, (4, 6)).transpose(1, 2).flatten(1, 2)
    everything = torch.ones(2, 24)
    assert (
        float(model.loss(images(), patches, everything)) == 0.0 and float(model.loss(images(), own, everything)) > 0.5
    )
    model.aligned_targets = True
    assert float(model.loss(images(), own, everything)) == 0.0


def test_kept_tokens_in_transposed_order() -> None:
    kept = KeptTokens(2, 3, torch.tensor([[0, 2, 4], [1, 3, 5]]))
    turned, order = kept.transposed()
    assert (turned.rows, turned.columns) == (3, 2)
    assert turned.places.tolist() == [[0, 3, 4], [1, 2, 5]] and order.tolist() == [[0, 2, 1], [1, 0, 2]]


def test_mirrored_places_make_the_directions_mirror_images() -> None:
    torch.manual_seed(0)
    mixer = MaskedFastVimMixer(16, mirror_ids=True)
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            if "_b" in name:
                other = name.replace("A_b_log", "A_log").replace("_b", "")
                parameter.copy_(mixer.get_parameter(other))
    x, places = torch.randn(1, 3, 16), torch.tensor([[0, 1, 5]])
    mirrored = KeptTokens(2, 3, 5 - places.flip(1))
    torch.testing.assert_close(mixer(x.flip(1), mirrored).flip(1), mixer(x, KeptTokens(2, 3, places)))
    mixer.mirror_ids = False
    assert not torch.allclose(mixer(x.flip(1), mirrored).flip(1), mixer(x, KeptTokens(2, 3, places)))


def test_the_position_table() -> None:
    table = sincos_table(8, (2, 3), class_rows=1)[0]
    assert table.shape == (7, 8) and not table[0].any()
    column, row = torch.tensor(2.0), torch.tensor(1.0)
    expected = [f(p * s) for p in (column, row) for f in (torch.sin, torch.cos) for s in (1.0, 0.01)]
    torch.testing.assert_close(table[1 + 5], torch.stack(expected))


def test_checkpointing_and_emptied_models() -> None:
    torch.manual_seed(0)
    model = FastMaskVim(**NANO, **DECODER)
    noise = torch.rand(2, 24)
    loss = model(images(), noise)[0]
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(images(), noise)[0], loss)
    empty = FastMaskVim(**NANO, **DECODER, device="meta").to_empty(device="cpu")
    empty.init_weights()
    assert torch.equal(empty.pos_embed, model.pos_embed)
    bound = (6 / (16 + 48)) ** 0.5
    assert 0.95 * bound < float(empty.patch_embed.proj.weight.abs().max()) <= bound
    assert not model.no_weight_decay()


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(mask_ratio=1.0), "mask_ratio: expected a number from 0 to below 1"),
        (dict(num_classes=10), "num_classes: an autoencoder has no classes, got 10"),
        (dict(stride=2), "stride: patches must not overlap, so it is patch_size 4, got 2"),
        (dict(mask_ratio="0.5"), "mask_ratio: expected a number from 0 to below 1, got '0.5'"),
        (dict(decoder_embed_dim=6), "decoder_embed_dim: a table of sines and cosines needs a multiple of 4, got 6"),
        (dict(in_chans=0), "in_chans: expected an int of at least 1, got 0"),
        (dict(decoder_depth=-1), "decoder_depth: expected an int of at least 1, got -1"),
        (dict(scaling_factor="0.25"), "scaling_factor: expected a number above 0, got '0.25'"),
        (dict(img_size=18), r"img_size: expected multiples of patch_size 4, got \(18, 18\)"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        FastMaskVim(**{**NANO, **DECODER, **options})
    with pytest.raises(UserError, match="features_only: vim_mae_base gives no maps; load its weights into"):
        timm.create_model("vim_mae_base", features_only=True)


def test_bad_input_is_named() -> None:
    model = FastMaskVim(**NANO, **DECODER)
    built = r"x: built for images \[B, 3, 16, 24\] \(img_size\), got \(2, 3, 24, 16\)"
    with pytest.raises(UserError, match=built):
        model(images().transpose(2, 3))
    with pytest.raises(ValueError, match=r"noise: expected \(2, 24\), one number a patch, got \(2, 6\)"):
        model(images(), torch.rand(2, 6))
    with pytest.raises(UserError, match="mask_ratio: 0.99 keeps none of 24 patches; lower it"):
        model(images(), mask_ratio=0.99)
    with pytest.raises(UserError, match="mask_ratio: it hides none of 24 patches, and the loss is of hidden ones"):
        model(images(), mask_ratio=0.0)
    with pytest.raises(UserError, match="mask_ratio: expected a number from 0 to below 1, got -0.5"):
        model(images(), mask_ratio=-0.5)
    with pytest.raises(TypeError, match="FastMaskVim: unknown argument 'mask_ration'. Did you mean 'mask_ratio'"):
        FastMaskVim(**NANO, mask_ration=0.5)
