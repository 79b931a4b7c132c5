"""Files of the layouts that Vim and FastVim were published in, loaded, resized, guessed and converted."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import timm
import torch

import vmamba
from vmamba.errors import UserError
from vmamba.models import FastMaskVim, FastVim, Vim, VimLN, VimMAE
from vmamba.weights import WeightsDoNotFit, load_weights
from vmamba.weights.adapting import load_adapted
from vmamba.weights.converting import convert
from vmamba.weights.guessing import models_that_fit
from vmamba.weights.reading import load_checkpoint

NANO: dict[str, Any] = dict(img_size=16, patch_size=4, depth=2, embed_dim=16, num_classes=5)


def state_of(model: torch.nn.Module, value: float | None = None) -> dict[str, torch.Tensor]:
    return {k: v.clone() if value is None else torch.full_like(v, value) for k, v in model.state_dict().items()}


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("averaged", [True, False])
def test_a_training_file_of_vim_with_and_without_averaged_weights(averaged: bool, tmp_path, equal) -> None:
    source = Vim(**NANO)
    payload: dict[str, Any] = {"model": state_of(source), "optimizer": {"state": {}}, "lr_scheduler": {}, "epoch": 7}
    payload |= {"scaler": {}, "args": Namespace(model="vim_tiny", lr=1e-3)}
    if averaged:
        payload["model_ema"] = state_of(source, 0.5)
    torch.save(payload, tmp_path / "checkpoint.pth")
    model = Vim(**NANO)
    load_weights(model, tmp_path / "checkpoint.pth", quiet=True)
    assert equal(model, payload["model"])
    load_weights(model, tmp_path / "checkpoint.pth", prefer_ema=True, quiet=True)
    assert equal(model, payload["model_ema" if averaged else "model"])


def test_a_lightning_file_holds_the_network_and_its_average(tmp_path, equal) -> None:
    source = FastVim(**NANO)
    plain, average = state_of(source), state_of(source, 0.25)
    state = {**prefixed(plain, "backbone."), **prefixed(average, "ema.module.")}
    payload = {"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 1.0}, "pytorch-lightning_version": "2.1"}
    model = FastVim(**NANO)
    load_weights(model, payload, quiet=True)
    assert equal(model, plain)
    load_weights(model, payload, prefer_ema=True, quiet=True)
    assert equal(model, average)
    supervised = {**payload, "state_dict_ema": state_of(source, 0.75)}
    load_weights(model, supervised, prefer_ema=True, quiet=True)
    assert equal(model, supervised["state_dict_ema"])
    # The accuracy of this release is that of the averaged weights.
    torch.save(supervised, tmp_path / "FastVim_tiny.ckpt")
    load_adapted(model, tmp_path / "FastVim_tiny.ckpt")
    assert equal(model, supervised["state_dict_ema"])


def test_a_finer_grid_resizes_the_position_embedding_and_keeps_the_class_row(equal) -> None:
    source = Vim(**NANO)
    for legacy in (False, True):
        model = Vim(**{**NANO, "stride": 2, "legacy_resize": legacy})
        report = load_weights(model, {"model": source.state_dict()}, quiet=True)
        assert report.resized == (("pos_embed", (1, 17, 16), (1, 50, 16)),)
        row, place = (0, 0) if legacy else (8, 24)
        assert torch.equal(model.pos_embed[:, place], source.pos_embed[:, row])
    other = {**source.state_dict(), "pos_embed": torch.zeros(1, 13, 16)}
    with pytest.raises(WeightsDoNotFit, match=r"1 mismatched \(pos_embed"):
        load_weights(Vim(**NANO), other, quiet=True)


def test_rotations_of_another_grid_are_the_models_own() -> None:
    rope = dict(if_rope=True, if_rope_residual=True)
    model = Vim(**{**NANO, "img_size": 24, **rope})
    own = model.rope.freqs_cos.clone()
    report = load_weights(model, Vim(**NANO, **rope).state_dict(), quiet=True)
    assert torch.equal(model.rope.freqs_cos, own) and {row[0] for row in report.resized} == {
        "pos_embed",
        "rope.freqs_cos",
        "rope.freqs_sin",
    }
    with pytest.raises(WeightsDoNotFit, match="unexpected .rope.freqs_cos"):
        load_weights(Vim(**NANO), Vim(**NANO, **rope).state_dict(), quiet=True)


def test_an_autoencoder_fine_tunes_into_fastvim() -> None:
    sizes = {key: value for key, value in NANO.items() if key != "num_classes"}
    source = FastMaskVim(**sizes, decoder_embed_dim=8, decoder_depth=1)
    payload = {"state_dict": prefixed(source.state_dict(), "backbone.")}
    model = FastVim(**NANO, scaling_factor=0.25)
    report = load_weights(model, payload, allow_head_mismatch=True, quiet=True)
    assert report.head_dropped == ("head.bias", "head.weight") and not report.unexpected
    assert torch.equal(model.layers[1].mixer.A_b_log, source.layers[1].mixer.A_b_log)
    with pytest.raises(WeightsDoNotFit, match="2 missing"):
        load_weights(model, payload, quiet=True)


@pytest.mark.parametrize("legacy", [False, True])
def test_vims_autoencoder_gives_its_class_row_to_the_middle(legacy: bool) -> None:
    sizes = {key: value for key, value in NANO.items() if key != "num_classes"}
    source = VimMAE(**sizes, decoder_embed_dim=8, decoder_depth=1)
    assert not source.pos_embed[0, 0].any() and source.pos_embed[0, 1:].any(1).all()
    model = VimLN(**NANO, legacy_resize=legacy)
    load_weights(model, source.state_dict(), allow_head_mismatch=True, quiet=True)
    place = 0 if legacy else 8
    assert not model.pos_embed[0, place].any() and torch.equal(model.pos_embed[0, 16], source.pos_embed[0, 16])
    assert torch.equal(model.pos_embed[0, 1 if legacy else 0], source.pos_embed[0, 1])
    assert torch.equal(model.cls_token, source.cls_token)


def test_the_model_is_told_from_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["vim_tiny", "vim_tiny_stride8", "vim_ln_tiny", "fastvim_tiny"]
    monkeypatch.setattr(vmamba, "list_models", lambda pattern="": [*names, "vmamba_tiny_s1l8"])
    for name in names[1::2]:
        state = timm.create_model(name, device="meta").state_dict()
        assert models_that_fit({"model": state}) == [name]


def test_weights_convert_without_their_wrapper_and_keep_their_names(tmp_path, equal) -> None:
    state = state_of(FastVim(**NANO))
    torch.save({"state_dict": prefixed(state, "backbone.")}, tmp_path / "lightning.ckpt")
    path = convert(tmp_path / "lightning.ckpt", tmp_path / "plain.pth")
    assert equal(load_checkpoint(path)["model"], state)
    with pytest.raises(UserError, match="--layout first_release: only a VSSM's weights"):
        convert(tmp_path / "lightning.ckpt", tmp_path / "other.pth", layout="first_release")


def test_a_file_given_to_a_published_factory(tmp_path) -> None:
    small = dict(depth=2, embed_dim=16)
    source: Any = timm.create_model("fastvim_base", **small, num_classes=5, img_size=64)
    torch.save({"state_dict": prefixed(source.state_dict(), "backbone.")}, tmp_path / "weights.ckpt")
    long = "vim_base_patch16_224_final_pool_mean_abs_pos_embed_with_noclstok_div2"
    model: Any = timm.create_model(long, **small, img_size=96, pretrained_checkpoint_path=tmp_path / "weights.ckpt")
    assert model.pos_embed.shape == (1, 36, 16) and torch.equal(model.norm_f.weight, source.norm_f.weight)
    assert torch.equal(model.layers[0].mixer.in_proj.weight, source.layers[0].mixer.in_proj.weight)
    options: dict[str, Any] = dict(features_only=True, out_indices=(0,), img_size=64)
    maps: Any = timm.create_model(long, **small, **options, pretrained_checkpoint_path=tmp_path / "weights.ckpt").eval()
    expected = source.eval().forward_intermediates(torch.ones(1, 3, 64, 64), intermediates_only=True)[0]
    assert torch.equal(maps(torch.ones(1, 3, 64, 64))[0], expected)


@pytest.mark.parametrize("key", ["layers.0.mixer.strange", "layers.2.mixer.D", "strange"])
def test_a_strange_key_in_a_file_is_an_error_where_only_features_are_taken(key: str, tmp_path) -> None:
    small: dict[str, Any] = dict(depth=2, embed_dim=16, img_size=64)
    state = state_of(timm.create_model("fastvim_base", **small))
    torch.save({"state_dict": {**state, key: torch.zeros(1)}}, tmp_path / "weights.ckpt")
    options: dict[str, Any] = dict(features_only=True, out_indices=(0,), **small)
    with pytest.raises(WeightsDoNotFit, match="1 unexpected"):
        timm.create_model("fastvim_base", **options, pretrained_checkpoint_path=tmp_path / "weights.ckpt")


def test_weights_without_rotations_fit_a_network_that_has_them() -> None:
    state = state_of(Vim(**NANO))
    model = Vim(**NANO, if_rope=True)
    rotations = model.rope.freqs_cos.clone()
    report = load_weights(model, state, quiet=True)
    assert report.clean and torch.equal(model.rope.freqs_cos, rotations)
