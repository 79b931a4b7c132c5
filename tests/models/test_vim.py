"""Vim, FastVim and Vim with LayerNorm against plain loops, at the options and sizes for which there is no record."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vmamba
from vmamba.errors import UserError
from vmamba.models import SS2D, VSSM, FastVim, Vim, VimLN
from vmamba.models.argument_checks import pair
from vmamba.models.class_tokens import resize_token_embed
from vmamba.models.fastvim_mixer import FastVimMixer
from vmamba.models.vim_mixer import VimMixer

from . import naive_vim

PARAMETERS = {
    "vim_tiny": 7_148_008,
    "vim_tiny_stride8": 7_250_344,
    "vim_small": 25_796_584,
    "vim_small_stride8": 26_001_256,
    "vim_base": 97_598_440,
    "fastvim_tiny": 7_166_056,
    "fastvim_small": 25_832_680,
    "fastvim_base": 97_670_632,
    "fastvim_large": 340_229_096,
    "fastvim_huge": 702_370_280,
    "vim_ln_tiny": 7_166_440,
    "vim_ln_small": 25_833_448,
    "vim_ln_base": 97_672_168,
    "vim_ln_large": 340_231_144,
}
BIMAMBA = "bimambav2_final_pool_mean_abs_pos_embed_with"
LONG = {
    f"vim_tiny_patch16_224_{BIMAMBA}_midclstok_div2": "vim_tiny",
    f"vim_tiny_patch16_stride8_224_{BIMAMBA}_midclstok_div2": "vim_tiny_stride8",
    f"vim_small_patch16_224_{BIMAMBA}_midclstok_div2": "vim_small",
    f"vim_small_patch16_stride8_224_{BIMAMBA}_midclstok_div2": "vim_small_stride8",
    f"vim_base_patch16_224_{BIMAMBA}_middle_cls_token_div2": "vim_base",
    f"vim_base_patch16_224_{BIMAMBA}_midclstok_div2": "vim_base",
    "vim_huge_patch14_224_final_pool_mean_abs_pos_embed_with_noclstok_div2": "fastvim_huge",
}
for _size in ("tiny", "small", "base", "large"):
    LONG[f"vim_{_size}_patch16_224_final_pool_mean_abs_pos_embed_with_noclstok_div2"] = f"fastvim_{_size}"
    LONG[f"vim_{_size}_patch16_224_final_pool_mean_abs_pos_embed_with_midclstok_div2"] = f"vim_ln_{_size}"

NANO: dict[str, Any] = dict(img_size=12, patch_size=4, depth=4, embed_dim=16, num_classes=5, d_state=4)


def nano(kind: type[nn.Module] = Vim, **kwargs: Any) -> Any:
    """A network of width 16 whose every part shows in the output."""
    torch.manual_seed(0)
    model = kind(**{**NANO, **kwargs}).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("proj.weight", "out_proj.weight", "head.weight", "_b.weight")):
                parameter.mul_(3)
            elif "token" in key or "embed" in key or key.endswith(("_log", ".D", ".D_b", "norm.weight", "norm.bias")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def images(height: int = 12, width: int = 12, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def close(got: Tensor, expected: Tensor) -> None:
    scale = expected.std().item()
    assert scale > 0.02, "the output must depend on the weights"
    tolerance = 1e-8 if expected.dtype is torch.float64 else 1e-4
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * scale)


def assert_same_gradients(model: nn.Module, got: Tensor, expected: Tensor) -> None:
    """The outputs and the gradient of every parameter, in float64, are those of the plain loops."""
    close(got, expected)
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = torch.linspace(-1, 1, got.numel()).view_as(got)
    ours = torch.autograd.grad((got * weights).sum(), parameters, allow_unused=True)
    plain = torch.autograd.grad((expected * weights).sum(), parameters, allow_unused=True)
    for (name, _), a, b in zip(model.named_parameters(), ours, plain, strict=True):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9 * float(b.abs().max() + 1), msg=name)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameters_are_the_published_ones(name: str) -> None:
    model: Any = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    size, per_token = model.embed_dim, 2 * model.embed_dim
    assert model.layers[0].mixer.dt_rank == math.ceil(size / 16) and model.layers[0].mixer.d_inner == per_token
    if "stride8" in name:
        assert model.grid == (27, 27) and model.pos_embed.shape == (1, 730, size)
    rates = [block.drop_path.drop_prob for block in model.layers]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.1) and rates == sorted(rates)


def test_these_are_all() -> None:
    assert {name for name in vmamba.list_models() if "vmamba" not in name} >= set(PARAMETERS)
    assert vmamba.list_models("vim_*stride8") == ["vim_small_stride8", "vim_tiny_stride8"]
    for other in ("deit_tiny_patch16_224", "vim_tinny"):
        with pytest.raises(UserError, match=f"unknown model '{other}'"):
            vmamba.create_model(other)
    for name in ("vim_tiny", next(iter(LONG))):
        assert isinstance(vmamba.create_model(f"{name}.in1k", device="meta", depth=1), Vim)
        with pytest.raises(
            UserError, match=f"unknown tag 'in21k' of the model '{name}'; name '{name}' or '{name}.in1k'"
        ):
            vmamba.create_model(f"{name}.in21k", device="meta")


@pytest.mark.parametrize("name", LONG)
def test_a_long_name_builds_the_same_network(name: str) -> None:
    model = timm.create_model(name, device="meta", depth=1)
    assert type(vmamba.create_model(name, device="meta", depth=1)) is type(model)
    short = timm.create_model(LONG[name], device="meta", depth=1)
    assert type(model) is type(short) and model.pretrained_cfg["architecture"] == LONG[name]
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in short.state_dict().items()}


VIM_CASES = {
    "middle": {},
    "one direction": dict(bimamba_type="none"),
    "v1": dict(bimamba_type="v1"),
    "v1 by its switch": dict(if_bimamba=True),
    "not divided": dict(if_divide_out=False),
    "misspelt": dict(if_devide_out=False),
    "layer scale": dict(init_layer_scale=0.5),
    "layer norm": dict(rms_norm=False),
    "projection biases": dict(ssm_cfg=dict(bias=True, conv_bias=False)),
    "other widths": dict(ssm_cfg=dict(d_conv=3, expand=1, dt_rank=3, d_state=3)),
    "pairs": dict(if_bidirectional=True),
    "no position embedding": dict(if_abs_pos_embed=False),
    "slow path": dict(ssm_cfg=dict(use_fast_path=False)),
}


@pytest.mark.parametrize("options", VIM_CASES.values(), ids=VIM_CASES)
@pytest.mark.parametrize("size", [(12, 12), (8, 20)], ids=str)
def test_vim_is_the_plain_loops(options: dict[str, Any], size: tuple[int, int]) -> None:
    model = nano(img_size=size, **options).double()
    x = images(*size).double()
    patches = naive_vim.tokens_of(model, x)
    tokens, place = patches.flatten(1, 2), patches.shape[1] * patches.shape[2] // 2
    tokens = torch.cat([tokens[:, :place], model.cls_token.expand(2, 1, 16), tokens[:, place:]], 1)
    tokens = tokens if model.pos_embed is None else tokens + model.pos_embed
    expected = model.head(naive_vim.encoded(model, tokens, patches.shape[1:3])[:, place])
    assert_same_gradients(model, model(x), expected)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("class_token", [True, False])
def test_rope_turns_the_tokens_of_the_image(residual: bool, pairs: bool, class_token: bool) -> None:
    options = dict(if_rope=True, if_rope_residual=residual, pt_hw_seq_len=5, if_bidirectional=pairs)
    model = nano(img_size=(8, 12), if_cls_token=False, final_pool_type="mean", **options)
    x = images(8, 12)
    tokens = naive_vim.tokens_of(model, x).flatten(1, 2) + model.pos_embed
    close(model(x), model.head(naive_vim.encoded(model, tokens, (2, 3)).mean(1)))
    if class_token:
        middle = nano(img_size=(8, 12), **options)
        cos, sin = middle._rotation((2, 3), (3,))
        assert cos.shape == (7, 16) and torch.equal(cos[3], torch.ones(16)) and not sin[3].any()
        assert torch.equal(torch.cat([cos[:3], cos[4:]]), model.rope.freqs_cos)
        assert middle(images(16, 20)).shape == (2, 5)


@pytest.mark.parametrize("kind", ["head", "double"])
def test_class_tokens_at_the_ends(kind: str) -> None:
    model = nano(use_double_cls_token=kind == "double", use_middle_cls_token=False).double()
    assert model.class_token == kind and model.global_pool == "token"
    x = images().double()
    tokens = naive_vim.tokens_of(model, x).flatten(1, 2)
    if kind == "head":
        tokens = torch.cat([model.cls_token.expand(2, 1, 16), tokens], 1)
    else:
        ends = [end.expand(2, 1, 16) for end in (model.cls_token_head, model.cls_token_tail)]
        tokens = torch.cat([ends[0], tokens, ends[1]], 1)
    features = naive_vim.encoded(model, tokens + model.pos_embed, (3, 3))
    pooled = features[:, 0] if kind == "head" else (features[:, 0] + features[:, -1]) / 2
    close(model(x), model.head(pooled))


@pytest.mark.parametrize("pool", ["none", "mean", "max", "all"])
def test_pools_without_a_class_token(pool: str) -> None:
    model = nano(if_cls_token=False, final_pool_type=pool)
    features = model.forward_features(images())
    expected = {
        "none": model.head(features[:, -1]),
        "mean": model.head(features.mean(1)),
        "max": model.head(features).amax(1),
        "all": model.head(features),
    }[pool]
    assert torch.equal(model(images()), expected)
    with pytest.raises(UserError, match="global_pool: 'token' needs a class token"):
        model.reset_classifier(3, "token")


FAST_CASES = {
    "mean": {},
    "max": dict(collapse_method="max"),
    "scaled": dict(scaling_factor=0.25),
    "no norm": dict(use_norm_after_ssm=False),
    "no norm, plain path": dict(use_norm_after_ssm=False, ssm_cfg=dict(use_fast_path=False)),
    "plain path": dict(ssm_cfg=dict(use_fast_path=False)),
}


@pytest.mark.parametrize("options", FAST_CASES.values(), ids=FAST_CASES)
@pytest.mark.parametrize("size", [(12, 12), (8, 20)], ids=str)
def test_fastvim_is_the_plain_loops(options: dict[str, Any], size: tuple[int, int]) -> None:
    model = nano(FastVim, img_size=size, **options).double()
    x = images(*size).double()
    patches = naive_vim.tokens_of(model, x)
    patches = patches + model.pos_embed.unflatten(1, patches.shape[1:3])
    assert_same_gradients(model, model(x), model.head(naive_vim.fast_encoded(model, patches).mean(1)))


def test_colwise_is_rowwise_of_the_transposed_image() -> None:
    rows, columns = nano(FastVim, img_size=(8, 12)), nano(FastVim, img_size=(12, 8), scanpath_type="colwise")
    columns.load_state_dict(rows.state_dict())
    with torch.no_grad():
        columns.patch_embed.proj.weight.copy_(rows.patch_embed.proj.weight.transpose(2, 3))
        x = images(8, 12)
        close(columns(x.transpose(2, 3)), rows(x))
        a, b = (m.forward_intermediates(i)[1][1] for m, i in ((rows, x), (columns, x.transpose(2, 3))))
    assert a.shape == (2, 16, 2, 3)
    close(b, a.transpose(2, 3))
    bigger = torch.randn(1, 6, 16)
    wide, tall = resize_token_embed(bigger, (2, 3), (4, 5)), bigger.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)
    close(resize_token_embed(tall, (3, 2), (5, 4)).unflatten(1, (5, 4)).transpose(1, 2).flatten(1, 2), wide)


def test_vim_with_layernorm_left_out_is_vim() -> None:
    plain, without = nano(Vim), nano(VimLN, use_norm_after_ssm=False)
    without.load_state_dict(plain.state_dict())
    assert torch.equal(plain(images()), without(images()))
    normed = nano(VimLN)
    assert normed.layers[0].mixer.layernorm.weight.shape == (32,) and not torch.equal(normed(images()), plain(images()))


@pytest.mark.parametrize("kind", [Vim, FastVim, VimLN])
def test_any_input_size(kind: type[nn.Module]) -> None:
    model = nano(kind)
    for size in ((12, 12), (16, 12), (9, 21), (4, 4), (40, 8)):
        x = images(*size)
        resized = kind(**{**NANO, "img_size": size}).eval()
        resized.load_state_dict(model.state_dict())
        close(model(x), resized(x))
    if kind is FastVim:
        assert torch.equal(model(images(9, 21)), model(F.pad(images(9, 21), (0, 3, 0, 3))))
        assert model(images(2, 3)).shape == (2, 5)
        with pytest.raises(ValueError, match=r"at least 1 pixels a side, got \(2, 3, 0, 3\)"):
            model(images(0, 3))
    else:
        assert torch.equal(model(images(9, 21)), model(images(9, 21)[:, :, :8, :20]))
        with pytest.raises(ValueError, match=r"at least 4 pixels a side, got \(2, 3, 2, 3\)"):
            model(images(2, 3))
    with pytest.raises(ValueError, match=r"expected images \[B, 3, H, W\], got \(2, 4, 12, 12\)"):
        model(images(channels=4))


def test_a_fastvim_of_224_runs_on_other_grids() -> None:
    model: Any = timm.create_model("fastvim_tiny", depth=2, embed_dim=16, num_classes=3).eval()
    with torch.no_grad():
        assert model(images(256, 192)).shape == (2, 3)
    eight = FastVim(**{**NANO, "patch_size": 8, "stride": 4, "img_size": 20}).eval()
    assert eight.grid == (4, 4) and eight(images(20, 21)).shape == (2, 5), "the stride is honoured"


def test_position_embedding_keeps_the_class_row_in_the_middle() -> None:
    embed = torch.randn(1, 17, 8)
    for kind, rows in (("middle", embed), ("head", embed), ("none", embed[:, :16]), ("double", torch.randn(1, 18, 8))):
        assert torch.equal(resize_token_embed(rows, (4, 4), (4, 4), kind), rows), kind
    bigger = resize_token_embed(embed, (4, 4), (6, 8), "middle")
    assert bigger.shape == (1, 49, 8) and torch.equal(bigger[:, 24], embed[:, 8])
    patches = torch.cat([embed[:, :8], embed[:, 9:]], 1)
    assert torch.equal(torch.cat([bigger[:, :24], bigger[:, 25:]], 1), resize_token_embed(patches, (4, 4), (6, 8)))


def test_position_embedding_resized_as_published_takes_row_0_for_the_class_token() -> None:
    embed = torch.randn(1, 1 + 14 * 14, 6)
    table = embed[:, 1:].reshape(1, 14, 14, 6).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(27, 27), mode="bicubic", align_corners=False)
    expected = torch.cat([embed[:, :1], table.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    assert torch.equal(resize_token_embed(embed, (14, 14), (27, 27), "middle", legacy=True), expected)
    legacy = nano(legacy_resize=True)
    source = nano(img_size=20).state_dict()
    legacy.load_state_dict(source)
    assert torch.equal(legacy.pos_embed[:, 0], source["pos_embed"][:, 0])
    correct = nano()
    correct.load_state_dict(source)
    assert torch.equal(correct.pos_embed[:, 4], source["pos_embed"][:, 12])


@pytest.mark.parametrize("kind", [Vim, FastVim])
def test_initialisation_is_the_published_one(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(depth=9, embed_dim=64, img_size=32)
    filled: Any = kind(**sizes, device="meta").to_empty(device="cpu")
    filled.init_weights()
    built: Any
    for built in (kind(**sizes), filled):
        mixer = built.layers[4].mixer
        dt = F.softplus(mixer.dt_proj.bias)
        assert 0.9e-3 < float(dt.min()) < float(dt.max()) < 0.11 and dt.log().std() > 0.8
        assert float(mixer.dt_proj.weight.abs().max()) <= mixer.dt_rank**-0.5
        assert not mixer.dt_proj_b.bias.any() and float(mixer.dt_proj_b.weight.abs().max()) <= mixer.dt_rank**-0.5
        assert torch.equal(mixer.A_log, torch.arange(1.0, 17).log().expand(128, 16))
        assert torch.equal(mixer.A_log, mixer.A_b_log) and torch.equal(mixer.D, torch.ones(128))
        bound = 128**-0.5 / 3
        assert 0.9 * bound < float(mixer.out_proj.weight.abs().max()) <= bound
        assert 0.9 * 64**-0.5 < float(mixer.in_proj.weight.abs().max()) <= 64**-0.5
        assert float(built.head.weight.std()) == pytest.approx(0.02, rel=0.05) and not built.head.bias.any()
        assert float(built.pos_embed.std()) == pytest.approx(0.02, rel=0.2)
        assert float(built.patch_embed.proj.weight.std()) == pytest.approx(768**-0.5, rel=0.05)
        assert not built.patch_embed.proj.bias.any()
    flat = Vim(**NANO, initializer_cfg=dict(rescale_prenorm_residual=False))
    assert float(flat.layers[0].mixer.out_proj.weight.abs().max()) > 0.9 * 32**-0.5
    constant = VimMixer(16, dt_init="constant", dt_scale=2.0)
    assert torch.equal(constant.dt_proj.weight, torch.full((32, 1), 2.0))


def test_a_class_token_at_a_random_place() -> None:
    model = nano(use_middle_cls_token=False)
    x = images()
    torch.manual_seed(3)
    place = int(torch.randint(10, ()))
    torch.manual_seed(3)
    got = model(x, if_random_cls_token_position=True)
    tokens = naive_vim.tokens_of(model, x).flatten(1, 2)
    tokens = torch.cat([tokens[:, :place], model.cls_token.expand(2, 1, 16), tokens[:, place:]], 1) + model.pos_embed
    assert place > 0
    close(got, model.head(naive_vim.encoded(model, tokens, (3, 3))[:, place]))
    middle = nano()
    assert torch.equal(middle(x, if_random_cls_token_position=True), middle(x)), "only where it is not in the middle"


def test_tokens_in_a_random_order() -> None:
    model = nano()
    x = images()
    torch.manual_seed(3)
    order = torch.randperm(10)
    torch.manual_seed(3)
    got = model(x, if_random_token_rank=True)
    tokens = naive_vim.tokens_of(model, x).flatten(1, 2)
    tokens = (torch.cat([tokens[:, :4], model.cls_token.expand(2, 1, 16), tokens[:, 4:]], 1) + model.pos_embed)[
        :, order
    ]
    close(got, model.head(naive_vim.encoded(model, tokens, (3, 3))[:, int((order == 4).nonzero())]))


def test_reversed_sequences_keep_their_class_token_and_maps() -> None:
    options = dict(if_rope=True, if_rope_residual=True, img_size=(12, 8))
    model, always = nano(**options), nano(**options, flip_img_sequences_ratio=1.0)
    x = images(12, 8)
    tokens = naive_vim.tokens_of(model, x).flatten(1, 2)
    tokens = torch.cat([tokens[:, :3], model.cls_token.expand(2, 1, 16), tokens[:, 3:]], 1) + model.pos_embed
    assert always(x).shape == (2, 5) and not torch.equal(always(x), model(x))
    _, sequence = always._embedded(x)
    assert sequence.places == (3,) and sequence.order.tolist() == [6, 5, 4, 3, 2, 1, 0]
    embedded, _ = always._embedded(x)
    torch.testing.assert_close(embedded, tokens.flip(1))
    before = always._map(embedded, sequence, "NHWC").flatten(1, 2)
    torch.testing.assert_close(before, torch.cat([tokens[:, :3], tokens[:, 4:]], 1))


@pytest.mark.parametrize("kind", [Vim, FastVim])
def test_checkpointing_and_half_precision(kind: type[nn.Module]) -> None:
    model = nano(kind)
    x = images()
    model(x).square().sum().backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    model.train()
    for block in model.layers:
        block.drop_path.drop_prob = 0.0
    model.set_grad_checkpointing()
    model(x).square().sum().backward()
    for got, wanted in zip((p.grad for p in model.parameters()), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    model.eval()
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x)
        narrow = kind(**NANO).eval().bfloat16()
        narrow.load_state_dict(model.state_dict())
        assert narrow._embedded(x.bfloat16())[0].dtype is torch.float32, "the residual stays in float32"
        half = narrow(x.bfloat16())
    assert mixed.dtype is torch.bfloat16 and half.dtype is torch.bfloat16
    for got in (mixed, half):
        assert float((got - exact).abs().max()) < 0.1 * float(exact.abs().max())
    plain = kind(**NANO, residual_in_fp32=False, dtype=torch.bfloat16)
    assert plain._embedded(x.bfloat16())[0].dtype is torch.bfloat16
    assert kind(**NANO, dtype=torch.float64)(x.double()).dtype is torch.float64


def test_fastvim_is_exported_for_any_size() -> None:
    from vmamba.export import export_program

    torch.manual_seed(0)
    model = FastVim(img_size=16, patch_size=4, depth=2, embed_dim=16, num_classes=5).eval()
    program = export_program(model, torch.zeros(1, 3, 16, 16)).module()
    for size in ((16, 16), (17, 30)):
        x = torch.randn(3, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(program(x), model(x))


def test_vim_is_compiled_and_exported_for_any_size() -> None:
    from vmamba.export import export_program, least_dynamic_side

    model = nano(depth=2)
    assert least_dynamic_side(model) == 8
    program = export_program(model, torch.zeros(1, 3, 12, 12)).module()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for size in ((12, 12), (17, 30)):
            close(program(images(*size)), model(images(*size)))
            close(compiled(images(*size)), model(images(*size)))


def test_features_of_pairs_and_pruning() -> None:
    model = nano(if_bidirectional=True)
    with torch.no_grad():
        _, maps = model.forward_intermediates(images())
        assert len(maps) == 4 and torch.equal(maps[0], maps[1]) and torch.equal(maps[2], maps[3])
        early = model.forward_intermediates(images(), indices=[0], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], maps[0])
    model.prune_intermediate_layers([0])
    assert len(model.layers) == 2


@pytest.mark.parametrize(
    "kind, options, said",
    [
        (Vim, dict(bimamba_type="v3"), "bimamba_type: 'v3' is not one of v2, v1, none"),
        (Vim, dict(final_pool_type="avg"), "final_pool_type: 'avg' is not one of none, mean, max, all"),
        (Vim, dict(ssm_cfg=dict(d_stat=3)), "ssm_cfg: 'd_stat' is not one of .* Did you mean 'd_state'"),
        (Vim, dict(initializer_cfg=dict(scale=3)), "initializer_cfg: 'scale' is not one of initializer_range"),
        (Vim, dict(if_bidirectional=True, depth=3), "depth: if_bidirectional takes the blocks in pairs, got 3 blocks"),
        (Vim, dict(depth=0), "depth: expected an int of at least 1, got 0"),
        (Vim, dict(d_state=257), "d_state: expected an int from 1 to 256, got 257"),
        (Vim, dict(drop_path_rate=1.0), "drop_path_rate: expected a number from 0 to below 1, got 1.0"),
        (Vim, dict(img_size=3), r"img_size: expected at least patch_size 4, got \(3, 3\)"),
        (Vim, dict(embed_dim=18, if_rope=True), "embed_dim: if_rope needs a multiple of 4, got 18"),
        (Vim, dict(img_size=3.5), r"img_size: expected an int or \(H, W\), got 3.5"),
        (Vim, dict(pt_hw_seq_len=0, if_rope=True), "pt_hw_seq_len: expected a number above 0, got 0"),
        (FastVim, dict(scaling_factor=math.nan), "scaling_factor: expected a number above 0, got nan"),
        (Vim, dict(stride=0), "stride: expected an int of at least 1, got 0"),
        (Vim, dict(stride=2.5), "stride: expected an int of at least 1, got 2.5"),
        (Vim, dict(in_chans=0), "in_chans: expected an int of at least 1, got 0"),
        (Vim, dict(channels=0), "channels: expected an int of at least 1, got 0"),
        (Vim, dict(num_classes=None), "num_classes: expected an int of at least 0, got None"),
        (Vim, dict(drop_rate="x"), "drop_rate: expected a number from 0 to below 1, got 'x'"),
        (Vim, dict(norm_epsilon=-1e-5), "norm_epsilon: expected a number of at least 0, got -1e-05"),
        (Vim, dict(initializer_cfg=dict(n_residuals_per_layer=0)), "n_residuals_per_layer: expected a number above 0"),
        (Vim, dict(global_pool="mean"), "global_pool: 'mean' is not one of token, avg, max, last, ''"),
        (Vim, dict(norm_epsilon=math.inf), "norm_epsilon: expected a number of at least 0, got inf"),
        (Vim, dict(ssm_cfg=dict(dt_rank=0)), "dt_rank: expected 'auto' or an int of at least 1, got 0"),
        (Vim, dict(ssm_cfg=dict(dt_rank=4.5)), "dt_rank: expected 'auto' or an int of at least 1, got 4.5"),
        (Vim, dict(ssm_cfg=dict(dt_rank="big")), "dt_rank: expected 'auto' or an int of at least 1, got 'big'"),
        (Vim, dict(ssm_cfg=dict(dt_rank=None)), "dt_rank: expected 'auto' or an int of at least 1, got None"),
        (Vim, dict(img_size=(12, 12, 12)), r"img_size: expected an int or \(H, W\), got \(12, 12, 12\)"),
        (Vim, dict(img_size="12"), r"img_size: expected an int or \(H, W\), got '12'"),
        (Vim, dict(ssm_cfg=dict(d_conv=9)), "d_conv: expected an int from 1 to 8, got 9"),
        (Vim, dict(ssm_cfg=dict(expand="x")), "expand: expected a number above 0, got 'x'"),
        (Vim, dict(ssm_cfg=dict(dt_min=0)), "dt_min: expected a number above 0, got 0"),
        (FastVim, dict(if_divide_out=False), "if_divide_out: FastVim takes the mean of its directions"),
        (FastVim, dict(bimamba_type="v1"), "bimamba_type: FastVim scans both directions"),
        (FastVim, dict(collapse_method="sum"), "collapse_method: 'sum' is not one of mean, max"),
        (FastVim, dict(scanpath_type="zigzag"), "scanpath_type: 'zigzag' is not one of rowwise, colwise"),
    ],
)
def test_bad_arguments_are_named(kind: type[nn.Module], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        kind(**{**NANO, **options})


@pytest.mark.parametrize("rank", [4, 4.0, "4", np.int64(4)])
def test_a_rank_may_be_any_number_that_is_whole(rank: Any) -> None:
    assert VimMixer(16, dt_rank=rank).dt_proj.weight.shape == (32, 4)
    assert SS2D(16, dt_rank=rank).dt_rank == 4


@pytest.mark.parametrize("size", [(12, 8), [12, np.int32(8)], np.array([12, 8]), torch.tensor([12, 8])], ids=repr)
def test_a_size_may_be_any_two_ints(size: Any) -> None:
    assert Vim(**{**NANO, "img_size": size}, device="meta").grid == (3, 2)
    assert VSSM(depths=(1,), dims=8, imgsize=size, device="meta").imgsize == (12, 8)
    assert pair("img_size", np.int64(12)) == (12, 12)


def test_a_norm_may_do_without_an_epsilon() -> None:
    assert nano(norm_epsilon=0).norm_f.eps == 0


@pytest.mark.parametrize(
    "kind, wrong, meant", [(Vim, "embed_dims", "embed_dim"), (FastVim, "scan_path", "scanpath_type")]
)
def test_unknown_arguments_are_refused(kind: type[nn.Module], wrong: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"{kind.__name__}: unknown argument '{wrong}'. Did you mean '{meant}'"):
        kind(**{wrong: 3})


def test_the_table_of_features_names_tests_that_exist() -> None:
    root = Path(__file__).parents[2]
    text = (root / "docs" / "vim_fastvim.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+)(?:-(\d+))? \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    assert {n for first, last, _ in rows for n in range(int(first), int(last or first) + 1)} == set(range(1, 66))
    sources = {path: path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py")}
    everything = "\n".join(sources.values())
    for first, _, cell in rows:
        assert re.search(r"`(?:\S+::)?test_\w+`|G `", cell), f"row {first} names neither a test nor a record"
        for name in re.findall(r"\btest_\w+", cell):
            assert f"def {name}(" in everything or any(path.stem == name for path in sources), name
        for file in re.findall(r"tests/[\w/]+\.py", cell):
            assert (root / file).is_file(), file
        for word in re.findall(r"`((?:mini|vim|vimln|fastvim|fastmaskvim|fastchannelvim)_?\w*)`", cell):
            found = list((root / "tests" / "data" / "golden").rglob(f"{word}_*.npz"))
            assert found, word


BARE = """
import sys, torch
def refusing(path, load=torch.ops.load_library):
    if "libvmamba" in str(path):
        raise OSError("planted")
    load(path)
sys.modules["triton"] = None
torch.ops.load_library = refusing
import vmamba
from vmamba_kernels import native
used = {row.backend for row in native.explain() if row.device == "cpu"}
assert not used & {"cpu", "triton"} and not torch.cuda.is_available(), used
for name in ("vim_tiny", "fastvim_tiny"):
    model = vmamba.create_model(name, depth=2, embed_dim=16, num_classes=3, img_size=32)
    logits = model(torch.ones(2, 3, 32, 48))
    logits.sum().backward()
    print(tuple(logits.shape), all(p.grad is not None for p in model.parameters()))
"""


@pytest.mark.slow
def test_networks_train_without_cuda_triton_and_compiled_operators() -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'kernels'}", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout.split("\n")[:2] == ["(2, 3) True"] * 2, done.stderr


def test_mixers_alone() -> None:
    x = torch.randn(2, 6, 16)
    assert VimMixer(16)(x).shape == x.shape and FastVimMixer(16)(x, (2, 3)).shape == x.shape
