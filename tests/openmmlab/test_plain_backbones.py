"""Vim and FastVim as backbones, and the simple pyramid on their one map."""

from __future__ import annotations

import pytest
import torch

from vmamba.errors import UserError
from vmamba.models.mae import FastMaskVim, VimMAE
from vmamba.models.vim import Vim
from vmamba.openmmlab import MM_FastVim, MM_Vim, VisionMambaDet, VisionMambaSeg
from vmamba.openmmlab.layer_decay import layer_scales, legacy_scales
from vmamba.openmmlab.simple_fpn import LN2d, SimpleFPN
from vmamba.weights import WeightsDoNotFit

SMALL = dict(img_size=64, embed_dim=16, depth=3, d_state=4)
both = pytest.mark.parametrize("kind", [MM_Vim, MM_FastVim])
VIM = dict(use_norm_after_ssm=False, **SMALL)


@both
def test_maps_of_any_size(kind):
    registry = pytest.importorskip("mmdet.registry").MODELS
    model = registry.build(dict(type=kind.__name__, out_indices=(0, 2), **SMALL)).eval()
    with torch.no_grad():
        first, last = model(torch.randn(1, 3, 61, 50))
    assert first.shape == last.shape == (1, 16, 4, 4) and first.is_contiguous()
    assert kind(out_indices=[1], **SMALL).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 16, 4, 4)


@both
def test_hidden_is_what_a_block_adds(kind):
    torch.manual_seed(0)
    hidden = kind(out_indices=(1, 2), out_norm=False, **SMALL).eval()
    stream = kind(out_indices=(0, 1, 2), out_norm=False, feature="residual", **SMALL).eval()
    stream.load_state_dict(hidden.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        (a, b), (before, middle, after) = hidden(x), stream(x)
    torch.testing.assert_close(a, middle - before)
    torch.testing.assert_close(b, after - middle)


@both
@pytest.mark.parametrize("with_cp", [False, True])
def test_every_trained_parameter_has_a_gradient(kind, with_cp):
    model = kind(out_indices=(0, 1), frozen_stages=0, with_cp=with_cp, **SMALL).train()
    sum(m.square().mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    assert not [n for n in trained if n.startswith(("patch_embed", "pos_embed", "layers.2."))] and len(trained) > 20


@pytest.mark.parametrize(("middle", "place"), [(True, 8), (False, 0)])
def test_a_classifiers_weights_lose_their_class_token(middle, place, tmp_path):
    classifier = Vim(num_classes=5, use_middle_cls_token=middle, **SMALL)
    torch.save({"model": classifier.state_dict()}, tmp_path / "vim.pth")
    start = dict(pretrained=str(tmp_path / "vim.pth"), use_middle_cls_token=middle, out_indices=(2,))
    model = MM_Vim(**start, **VIM)
    rows = [i for i in range(17) if i != place]
    assert torch.equal(model.pos_embed, classifier.pos_embed[:, rows])
    assert torch.equal(model.layers[1].mixer.A_log, classifier.layers[1].mixer.A_log)
    assert MM_Vim(**start, **{**VIM, "img_size": 96}).pos_embed.shape == (1, 36, 16)
    assert MM_Vim(**start, rms_norm=False, **VIM).layers[0].norm.bias.eq(0).all()
    with pytest.raises(WeightsDoNotFit, match="mismatched"):
        MM_Vim(**start, **{**VIM, "embed_dim": 32})
    turning = dict(if_rope=True, if_cls_token=False)
    segmentor = VisionMambaSeg(**{**start, "out_indices": (0, 1, 1, 2)}, **turning, **SMALL)
    assert torch.equal(segmentor.pos_embed, model.pos_embed), "wherever the network itself has no class token"
    assert VisionMambaDet(**{k: v for k, v in start.items() if k != "out_indices"}, **turning, **SMALL).rope is not None


def test_an_autoencoders_weights_lose_their_class_token_which_has_the_first_row(tmp_path):
    sizes = {**SMALL, "ssm_cfg": dict(d_state=SMALL["d_state"])}
    del sizes["d_state"]
    decoder = dict(decoder_embed_dim=8, decoder_depth=1)
    for kind, backbone, first in ((VimMAE, MM_Vim, 1), (FastMaskVim, MM_FastVim, 0)):
        source = kind(**decoder, **sizes)
        torch.save({"model": source.state_dict()}, tmp_path / "mae.pth")
        model = backbone(pretrained=str(tmp_path / "mae.pth"), out_indices=(2,), **SMALL)
        assert model.class_token == "none" and model.trained_class_token == ("middle" if first else "none")
        assert torch.equal(model.pos_embed, source.pos_embed[:, first:])
        assert torch.equal(model.layers[2].mixer.A_log, source.layers[2].mixer.A_log)


def test_layers_of_vim_decay():
    scales = layer_scales(MM_Vim(out_indices=(2,), **SMALL), 0.5)
    found = [scales[f"{name}"] for name in ("pos_embed", "layers.0.norm.weight", "layers.2.norm.weight")]
    assert found == [0.5**4, 0.5**3, 0.5] and scales["outnorm_0.weight"] == 1.0
    legacy = legacy_scales(MM_Vim(out_indices=(2,), **SMALL), 0.5)
    assert legacy.keys() == scales.keys() and set(legacy.values()) == {1.0, 0.5**4}
    assert {name for name, scale in legacy.items() if scale < 1} == {n for n in scales if not n.startswith(("l", "o"))}
    assert legacy_scales(MM_Vim(out_indices=(2,), **SMALL), 0.5, 12)["pos_embed"] == 0.5**13


def test_one_map_makes_four_levels():
    torch.manual_seed(0)
    model = VisionMambaSeg(out_indices=(2,), **SMALL).eval()
    with torch.no_grad():
        levels = model(torch.randn(1, 3, 61, 50))
    assert [tuple(level.shape[1:]) for level in levels] == [(16, 16, 16), (16, 8, 8), (16, 4, 4), (16, 2, 2)]
    torch.testing.assert_close(levels[3], torch.nn.functional.max_pool2d(levels[2], 2))


def test_the_normed_stream_is_the_norm_of_the_stream():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    plain, normed = (VisionMambaDet(last_layer_process=last, **SMALL).eval() for last in ("add", "add & norm"))
    normed.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        expected = normed.norm_f(plain(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(normed(x), expected)
        branch = VisionMambaDet(last_layer_process="none", **SMALL).eval()
        branch.load_state_dict(plain.state_dict())
        before = VisionMambaSeg(out_indices=(1,), use_residual_as_feature=True, if_fpn=False, **SMALL).eval()
        before.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(branch(x), plain(x) - before(x))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(feature="sum"),
        dict(out_indices=(3,)),
        dict(frozen_stages=4),
        dict(last_layer_process="add"),
        dict(last_layer_process="norm", feature="residual"),
        dict(if_bidirectional=True, depth=4),
        dict(last_layer_process="none", feature="residual", if_bidirectional=True, depth=4, out_indices=(3,)),
        dict(last_layer_process="add", feature="residual", out_indices=(0, 1)),
        dict(norm_cfg=dict(type="BN")),
        dict(fpn="swin"),
        dict(fpn="vit", out_indices=(0, 1)),
        dict(fpn="vit", patch_size=4),
    ],
)
def test_wrong_arguments_are_told(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        MM_Vim(**{"out_indices": (2,), **SMALL, **wrong})


def test_published_names_tell_of_their_own_arguments():
    with pytest.raises(UserError, match="last_layer_process: .* use_residual_as_feature=True"):
        VisionMambaSeg(out_indices=(2,), last_layer_process="add", **SMALL)
    with pytest.raises(UserError, match="out_indices: .* MM_Vim"):
        VisionMambaDet(out_indices=(2,), **SMALL)


def test_the_simple_pyramid():
    norm = dict(type="LN2d")
    neck = SimpleFPN(16, [4, 8, 16, 16], 12, num_outs=5, norm_cfg=norm)
    outs = neck((torch.randn(1, 16, 6, 4),))
    assert [tuple(out.shape[1:]) for out in outs] == [(12, 24, 16), (12, 12, 8), (12, 6, 4), (12, 3, 2), (12, 2, 1)]
    keys = set(neck.state_dict())
    assert {"fpn1.0.weight", "fpn1.1.weight", "fpn1.3.bias", "fpn2.0.bias", "lateral_convs.3.conv.weight"} <= keys
    assert isinstance(neck.fpn_convs[0].norm, LN2d) and "fpn_convs.0.conv.bias" not in keys
    x = torch.randn(2, 12, 5, 4)
    mean, spread = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    torch.testing.assert_close(LN2d(12, eps=1e-6)(x), (x - mean) / (spread + 1e-6).sqrt())
    with pytest.raises(UserError, match="in_channels"):
        SimpleFPN(16, [16, 16, 16, 16], 12)
