"""What timm asks of every model it holds, asked of every name of ours: small networks of each name's design."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from timm.layers import is_exportable, is_scriptable
from timm.models import FeatureInfo, GraphExtractNet, get_graph_node_names
from timm.models._manipulate import group_parameters
from timm.optim import create_optimizer_v2

from vmamba.models import Vim, model_names

from .timm_designs import SIZE, VMAMBA, design_of

# Those of many channels and the autoencoders are asked elsewhere what they can do.
NAMES = [name for name in model_names() if not any(word in name for word in ("mask", "mae", "channel"))]
each_model = pytest.mark.parametrize("name", NAMES)
TRACED = [name for name in NAMES if design_of(name) is VMAMBA]  # by torch.fx
in_both_modes = pytest.mark.filterwarnings("ignore:NOTE. The nodes obtained by tracing the model in eval mode")


def small(name: str, **kwargs: Any) -> Any:
    """The design of a name with four blocks and a first width of 16."""
    torch.manual_seed(0)
    return timm.create_model(name, **{**design_of(name).small, **kwargs})


def images(batch: int = 1, channels: int = 3, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


@each_model
def test_registered_with_a_config_and_found_by_timm(name: str) -> None:
    assert timm.is_model(name) and name in timm.list_models("*vim*" if "vim" in name else "*vmamba*")
    assert timm.get_pretrained_cfg(name).tag == "in1k"
    model = timm.create_model(name, device="meta")
    cfg = model.pretrained_cfg
    state = model.state_dict()
    assert cfg["architecture"] == name and cfg["num_classes"] == model.num_classes == 1000
    assert f"{cfg['classifier']}.weight" in state and f"{cfg['first_conv']}.weight" in state
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 224, 224)
    overlaid = small(name, pretrained_cfg_overlay=dict(crop_pct=1.0), pretrained_cfg=dict(cfg, mean=(0.5, 0.5, 0.5)))
    assert overlaid.pretrained_cfg["crop_pct"] == 1.0 and overlaid.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)


@each_model
def test_forward_and_backward_reach_every_parameter(name: str) -> None:
    model = small(name, num_classes=42).train()
    output = model(images(2))
    assert output.shape == (2, 42) and output.isfinite().all()
    output.mean().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    model.zero_grad()
    model.set_grad_checkpointing()
    model(images(2)).mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@each_model
def test_heads_can_be_left_out_reset_and_pooled_otherwise(name: str) -> None:
    x = images()
    model = small(name).eval()
    classifier = model.pretrained_cfg["classifier"]
    with torch.no_grad():
        features = model.forward_features(x)
        last = design_of(name).as_map(model, features)
        assert last.shape == (1, model.num_features, *design_of(name).sides(model)[-1])
        logits = model.forward_head(features)
        assert torch.equal(logits, model(x)) and logits.shape == (1, 1000)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (1, model.head_hidden_size)
        assert torch.equal(model.get_classifier()(pooled), logits)

        for headless in (copy.deepcopy(model), small(name, num_classes=0).eval()):
            headless.load_state_dict(model.state_dict(), strict=False)
            headless.reset_classifier(0)
            assert headless(x).shape == (1, model.num_features) and headless.num_classes == 0
            assert not any(key.startswith(f"{classifier}.") for key in headless.state_dict())
            assert torch.equal(headless(x), pooled)
        for unpooled in (copy.deepcopy(model), small(name, num_classes=0, global_pool="").eval()):
            unpooled.load_state_dict(model.state_dict(), strict=False)
            unpooled.reset_classifier(0, "")
            assert torch.equal(unpooled(x), features)
        again = copy.deepcopy(model)
        again.reset_classifier(0, "")
        again.reset_classifier(7, "avg")
        assert again(x).shape == (1, 7) and isinstance(again.get_classifier(), torch.nn.Linear)


@pytest.mark.parametrize(
    ("name", "feature_cls"),
    [(name, cls) for name in NAMES for cls in (None, "hook", "fx") if cls != "fx" or name in TRACED],
)
@in_both_modes
def test_features_only_gives_the_maps_that_its_info_tells(name: str, feature_cls: str | None) -> None:
    design = design_of(name)
    kwargs: dict[str, Any] = {} if feature_cls is None else {"feature_cls": feature_cls}
    model = small(name, features_only=True, **kwargs).eval()
    whole = small(name)
    assert model.feature_info.channels() == list(design.widths)
    assert model.feature_info.reduction() == [info["reduction"] for info in whole.feature_info]
    assert not any("head" in key for key in model.state_dict()) or feature_cls
    with torch.no_grad():
        maps = model(images())
    if feature_cls and design.hooks_see_tokens:
        maps = [design.as_map(whole, found) for found in maps]
    channel = 3 if feature_cls and getattr(whole, "output_fmt", "NCHW") == "NHWC" else 1
    for found, info in zip(maps, model.feature_info, strict=True):
        sides = [n for axis, n in enumerate(found.shape) if axis not in (0, channel)]
        assert found.shape[channel] == info["num_chs"] and found.isfinite().all()
        assert sides == list(design.sides(whole)[info["index"]])
    some = small(name, features_only=True, out_indices=(-3, 3), **kwargs).eval()
    assert [i % 4 for i in some.feature_info.out_indices] == [1, 3]
    with torch.no_grad():
        two = some(images())
    if feature_cls and design.hooks_see_tokens:
        two = [design.as_map(whole, found) for found in two]
    assert [m.shape for m in two] == [maps[1].shape, maps[3].shape]


@each_model
def test_intermediates_agree_with_the_features_and_can_be_pruned(name: str) -> None:
    x = images()
    design, model = design_of(name), small(name).eval()
    info = FeatureInfo(model.feature_info, out_indices=(0, 1, 2, 3))
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        assert torch.equal(final, model.forward_features(x))
        assert [m.shape[1] for m in maps] == info.channels()
        assert [tuple(m.shape[2:]) for m in maps] == design.sides(model)
        last = [
            m.permute(0, 3, 1, 2) for m in model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
        ]
        assert all(torch.equal(a, b) for a, b in zip(last, maps, strict=True))
        normed = model.forward_intermediates(x, indices=1, norm=True)[1]
        assert len(normed) == 1 and torch.equal(normed[0], design.as_map(model, final))
        early = model.forward_intermediates(x, indices=[0, 2], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], maps[0]) and torch.equal(early[1], maps[2]) and len(early) == 2
        with pytest.raises(ValueError, match="output_fmt"):
            model.forward_intermediates(x, output_fmt="NLC")
        with pytest.raises(AssertionError):
            model.forward_intermediates(x, indices=[4])

        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([0, 2], prune_norm=True) == [0, 2]
        assert len(pruned.layers) == 3 and pruned.num_classes == 0
        kept = pruned.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(kept, (maps[0], maps[2]), strict=True))
        assert torch.equal(design.as_map(pruned, pruned(x)), maps[2])


@each_model
@pytest.mark.parametrize("coarse", [True, False])
def test_every_parameter_is_in_one_group_and_groups_rise_with_depth(name: str, coarse: bool) -> None:
    model = timm.create_model(name, device="meta")
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    grouped = [key for keys in groups.values() for key in keys]
    assert sorted(grouped) == sorted(key for key, _ in model.named_parameters())
    layer = {key: number for number, keys in groups.items() for key in keys}
    stages = len(model.layers)
    assert len(groups) == (stages if coarse else len(design_of(name).blocks(model))) + 2
    numbers = [number for key, number in layer.items() if key.endswith(f".{design_of(name).mixer}.out_proj.weight")]
    assert numbers == sorted(numbers) and layer[f"{model.pretrained_cfg['first_conv']}.weight"] == 0
    assert layer[f"{model.pretrained_cfg['classifier']}.weight"] == max(groups) >= numbers[-1]


@each_model
def test_layer_decay_and_no_weight_decay_reach_the_optimizer(name: str) -> None:
    design = design_of(name)
    model = small(name, **design.embedded)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    options = {
        id(p): (group["lr_scale"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert len(options) == len(list(model.parameters()))
    scales = [options[id(getattr(block, design.mixer).out_proj.weight)][0] for block in design.blocks(model)]
    assert scales == sorted(scales) and scales[0] < scales[-1] < 1.0
    assert options[id(model.get_classifier().weight)] == (1.0, 0.1)
    assert options[id(model.pos_embed)][1] == 0.0 and model.no_weight_decay() == design.unweighted


@each_model
def test_channels_device_type_and_flags_are_passed_through(name: str) -> None:
    for channels in (1, 5):
        assert small(name, in_chans=channels).eval()(images(channels=channels)).shape == (1, 1000)
    assert {p.dtype for p in small(name, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert all(p.is_meta for p in small(name, device="meta").parameters())
    model = small(name, exportable=True, scriptable=True, drop_rate=0.3, drop_path_rate=0.2).eval()
    assert not is_exportable() and not is_scriptable(), "timm's flags hold while the model is built"
    design = design_of(name)
    assert design.dropout(model).p == 0.3 and design.blocks(model)[3].drop_path.drop_prob == pytest.approx(0.2)
    narrow = small(name, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        assert narrow(images().bfloat16()).dtype is torch.bfloat16
    wrong, meant = design.misspelt
    with pytest.raises(TypeError, match=meant):
        timm.create_model(name, **{wrong: 0.5})


@each_model
def test_weights_of_three_channels_become_those_of_one_or_five(name: str, tmp_path) -> None:
    source = small(name)
    file = tmp_path / "weights.pth"
    torch.save(source.state_dict(), file)
    key = f"{source.pretrained_cfg['first_conv']}.weight"
    for channels in (1, 5):
        overlay = dict(file=str(file), custom_load=False)
        model = small(name, pretrained=True, in_chans=channels, num_classes=9, pretrained_cfg_overlay=overlay)
        state, old = model.state_dict(), source.state_dict()
        assert state[key].shape[1] == channels and model.get_classifier().weight.shape[0] == 9
        if channels == 1:
            torch.testing.assert_close(state[key], old[key].sum(1, keepdim=True))
        other = next(key for key in reversed(state) if key.endswith("in_proj.weight"))
        assert torch.equal(state[other], old[other])


@each_model
def test_input_size_can_be_set_and_is_free(name: str) -> None:
    model = small(name, **design_of(name).embedded).eval()
    model.set_input_size((96, 64))
    if isinstance(model, Vim):
        tokens = model.stage_sizes(96)[0] * model.stage_sizes(64)[0] + (model.class_token != "none")
        assert model.pos_embed.shape == (1, tokens, 16)
    else:
        assert model.pos_embed.shape == (1, 16, 24, 16)
    plain = small(name).eval()
    plain.set_input_size(img_size=128)
    with torch.no_grad():
        assert model(images(size=(96, 64))).shape == plain(images(size=(75, 50))).shape == (1, 1000)
    with pytest.raises(ValueError, match="patch_size"):
        plain.set_input_size(patch_size=8)


@pytest.mark.parametrize("name", TRACED)
@in_both_modes
def test_torch_fx_traces_the_whole_network_and_its_mixers_are_nodes(name: str) -> None:
    model = small(name, depths=(1, 1), num_classes=7, posembed=True, imgsize=64, drop_path_rate=0.0).eval()
    training_nodes, nodes = get_graph_node_names(model)
    assert {"layers.0.blocks.0.op", "layers.1.blocks.0.op", "classifier.head"} <= set(nodes)
    graph = GraphExtractNet(model, [nodes[-1]])
    with torch.no_grad():
        for x in (images(), images(2, size=(50, 37))):
            assert torch.equal(graph(x), model(x))
    graph = GraphExtractNet(model.train(), [training_nodes[-1]]).train()
    graph(images(2)).square().mean().backward()
    assert [key for key, p in graph.graph_module.named_parameters() if p.grad is None] == []
    assert len(list(graph.parameters())) == len(list(model.parameters()))


@each_model
def test_small_and_empty_batches_narrow_types_layouts_and_copies(name: str) -> None:
    model = small(name, num_classes=7).eval()
    x = images(2, size=(45, 36))
    again = small(name, num_classes=7).eval()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model(x)
        assert model(x[:0]).shape == (0, 7) and model(images(1, size=(32, 32))).isfinite().all()
        for copied in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
            assert torch.equal(copied(x), expected)
        one_by_one = torch.vmap(lambda image: model(image[None])[0])(x)
        torch.testing.assert_close(one_by_one, expected, rtol=1e-4, atol=1e-5)
        by_channel = copy.deepcopy(model).to(memory_format=torch.channels_last)
        assert torch.allclose(by_channel(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-6)
        half = copy.deepcopy(model).half()(x.half())
        assert half.dtype is torch.float16 and (half - expected).norm() <= 0.01 * expected.norm()


def test_four_levels_at_an_odd_size() -> None:
    model = timm.create_model("vmamba_tiny_s1l8", features_only=True).eval()
    with torch.no_grad():
        maps = model(images(size=(225, 181)))
    assert [tuple(m.shape) for m in maps] == [(1, 96, 57, 46), (1, 192, 29, 23), (1, 384, 15, 12), (1, 768, 8, 6)]
    assert all(m.isfinite().all() for m in maps)
