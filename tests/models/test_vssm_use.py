"""How a model is used: options, training behaviour, precisions, copies, compile and export."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector

from vmamba.models import VSSM, Backbone, ForwardType
from vmamba.models.layers import Mlp, PatchMerging

NANO = dict(depths=(1, 1), dims=16, num_classes=10, ssm_d_state=1, norm_layer="ln2d", ssm_conv_bias=False)
NANO |= dict(downsample_version="v3", patchembed_version="v2", drop_path_rate=0.0)
OPTIONS = {
    "published": {},
    "channel_last": dict(norm_layer="ln"),
    "bn": dict(norm_layer="bn"),
    "gate": dict(forward_type="v05"),
    "nozact": dict(forward_type="v05_nozact"),
    "vanilla": dict(forward_type="v0", mlp_ratio=0.0, norm_layer="ln", ssm_d_state=16, ssm_conv_bias=True)
    | dict(downsample_version="v1", patchembed_version="v1"),
    "gmlp": dict(gmlp=True),
    "conv5": dict(ssm_conv=5, ssm_conv_bias=True),
    "noconv": dict(ssm_conv=-1),
    "patch8": dict(patch_size=8),
    "patch2_v1": dict(patch_size=2, patchembed_version="v1"),
    "no_patch_norm": dict(patch_norm=False),
    "down_v1": dict(downsample_version="v1"),
    "down_v2": dict(downsample_version="v2"),
    "down_none": dict(downsample_version="none", dims=(16, 16)),
    "posembed": dict(posembed=True, imgsize=(48, 32)),
    "cascade_cl": dict(forward_type="v052dc_noz", norm_layer="ln"),
    "onnone": dict(forward_type="v05_onnone_noz"),
    "ondwconv3": dict(forward_type="v05_ondwconv3"),
    "oncnorm": dict(forward_type="v05_oncnorm_noz"),
    "onsoftmax": dict(forward_type="v05_onsoftmax_noz"),
    "onsigmoid": dict(forward_type="v05_onsigmoid_noz"),
    "m0": dict(forward_type="m0", ssm_init="v2", ssm_d_state=4),
    "m0_noz_channel_last": dict(forward_type="m0_noz", ssm_init="v1", ssm_d_state=3, norm_layer="ln"),
    "activations": dict(ssm_act_layer="ReLU", mlp_act_layer="sigmoid", ssm_init="v1", ssm_dt_rank=3),
    "dropouts": dict(ssm_drop_rate=0.2, mlp_drop_rate=0.2, drop_rate=0.2, drop_path_rate=0.2),
}
each_option = pytest.mark.parametrize("name", OPTIONS)


def build(name: str = "published", **kwargs) -> VSSM:
    torch.manual_seed(0)
    return VSSM(**{**NANO, **OPTIONS[name], **kwargs})


@each_option
def test_every_option_runs_trains_and_is_finite(name: str) -> None:
    model = build(name)
    x = torch.randn(2, 3, 50, 37, requires_grad=True)
    model(x).square().mean().backward()
    assert x.grad.isfinite().all()
    unused = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not unused
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", [n for n, o in OPTIONS.items() if o.get("norm_layer", "ln2d") != "bn"])
def test_both_layouts_give_the_same_numbers_and_gradients(name: str) -> None:
    first, last = build(name, norm_layer="ln2d").eval(), build(name, norm_layer="ln").eval()
    assert {k: v.shape for k, v in first.state_dict().items()} == {k: v.shape for k, v in last.state_dict().items()}
    last.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 53, 40)
    outputs = first(x), last(x)
    assert torch.allclose(*outputs, atol=3e-6)
    gradients = []
    for model, output in zip((first, last), outputs):
        output.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[0].std()) + 1e-7)


def test_absent_branches_have_no_keys() -> None:
    no_mlp, no_ssm = build(mlp_ratio=0.0), build(ssm_ratio=0.0)
    assert not any(".mlp." in k or ".norm2." in k for k in no_mlp.state_dict())
    assert not any(".op." in k or ".norm." in k for k in no_ssm.state_dict() if k.startswith("layers.0.blocks"))
    assert no_ssm(torch.randn(1, 3, 32, 32)).shape == no_mlp(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_gated_mlp_and_patch_merging_by_their_formulas() -> None:
    x = torch.randn(2, 5, 7, 6)
    mlp = Mlp(6, 10, gated=True)
    a, z = (x @ mlp.fc1.weight.T + mlp.fc1.bias).chunk(2, -1)
    assert torch.allclose(mlp(x), (a * F.gelu(z)) @ mlp.fc2.weight.T + mlp.fc2.bias, atol=1e-6)
    merging = PatchMerging(6)
    padded = torch.zeros(2, 6, 8, 6)
    padded[:, :5, :7] = x
    parts = [padded[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert torch.allclose(merging(x), merging.reduction(merging.norm(torch.cat(parts, -1))), atol=1e-6)


def test_linear_layers_and_norms_start_as_published() -> None:
    model = build(dims=64, num_classes=100)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert abs(module.weight.std() - 0.02) < 0.002 and abs(module.weight.mean()) < 0.002
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any()
    pos = build("posembed", dims=64).pos_embed
    assert pos.shape == (1, 64, 12, 8) and abs(pos.std() - 0.02) < 0.001


def test_drop_path_grows_linearly_over_all_blocks_and_is_off_in_eval() -> None:
    model = VSSM(depths=(2, 3, 1), dims=8, drop_path_rate=0.5, num_classes=3)
    rates = [block.drop_path.drop_prob for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(model.eval()(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    assert [b.drop_path.drop_prob for b in VSSM(depths=(1,), dims=8, drop_path_rate=0.5).layers[0].blocks] == [0.0]


def test_checkpointing_gives_the_same_loss_and_gradients() -> None:
    x = torch.randn(2, 3, 40, 33)
    results = []
    for enable in (False, True, None):
        model = build(drop_path_rate=0.3, ssm_drop_rate=0.1, use_checkpoint=enable is None).train()
        if enable is not None:
            model.set_grad_checkpointing(enable)
        assert all(b.use_checkpoint == (enable is not False) for s in model.layers for b in s.blocks)
        torch.manual_seed(1)
        loss = model(x).square().sum()
        loss.backward()
        results.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(gradient, results[0][1])


@each_option
def test_half_weights_and_autocast_stay_near_float32(name: str) -> None:
    model = build(name).eval()
    x = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        expected = model(x)
        for dtype, bound in ((torch.bfloat16, 0.08), (torch.float16, 0.01)):
            narrow = copy.deepcopy(model).to(dtype)
            output = narrow(x.to(dtype))
            assert output.dtype == dtype
            with torch.autocast("cpu", dtype=dtype):
                automatic = model(x)
            for found in (output, automatic):
                assert (found.float() - expected).norm() <= bound * expected.norm()


def test_half_weights_train() -> None:
    model = build().to(torch.bfloat16)
    model(torch.randn(2, 3, 48, 40, dtype=torch.bfloat16)).float().square().sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["published", "channel_last", "vanilla", "m0"])
def test_channels_last_input_and_model(name: str) -> None:
    model = build(name).eval()
    x = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(model(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-6)
        moved = copy.deepcopy(model).to(memory_format=torch.channels_last)
        assert torch.allclose(moved(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-6)


def test_position_embedding_follows_the_image_and_reaches_the_backbone() -> None:
    model = build("posembed").eval()
    backbone = Backbone((0, 1), add_pos_embed=True, **(NANO | OPTIONS["posembed"])).eval()
    x = torch.randn(1, 3, 48, 32)
    for network in (model, backbone):
        before = network(x)
        with torch.no_grad():
            network.pos_embed.add_(torch.randn_like(network.pos_embed))
        after = network(x)
        assert not torch.allclose(torch.as_tensor(after[0]), torch.as_tensor(before[0]))
        assert network(torch.randn(1, 3, 75, 62))[0].isfinite().all()
    with torch.no_grad():
        constant = torch.randn(1, 16, 1, 1).expand_as(model.pos_embed)
        model.pos_embed.copy_(constant)
        x = torch.randn(1, 3, 90, 70)
        resized = model(x)
        model.set_input_size((90, 70))
        assert model.pos_embed.shape == (1, 16, 22, 17) and model.imgsize == (90, 70)
        assert torch.allclose(model(x), resized, atol=1e-5)


@pytest.mark.parametrize("indices", [(0, 1, 2), (1,), (2, 0)])
def test_backbone_gives_one_normed_map_per_index(indices: tuple[int, ...]) -> None:
    model = Backbone(indices, depths=(1, 1, 1), dims=8, ssm_d_state=1).eval()
    assert not model.channel_first and not hasattr(model, "classifier")
    maps = model(torch.randn(2, 3, 64, 96))
    assert [m.shape for m in maps] == [(2, 8 << i, 16 >> i, 24 >> i) for i in sorted(indices)]
    for found in maps:
        assert found.is_contiguous() and found.mean(1).abs().max() < 1e-5
    for index in indices:
        getattr(model, f"outnorm{index}").weight.data.fill_(0)
    assert all(not m.any() for m in model(torch.randn(2, 3, 64, 96)))


@pytest.mark.parametrize("norm, shape", [("ln", (2, 8, 12, 16)), ("ln2d", (2, 16, 8, 12))])
def test_backbone_without_indices_gives_the_last_output_in_its_layout(norm: str, shape: tuple[int, ...]) -> None:
    model = Backbone((), depths=(1, 1), dims=8, norm_layer=norm).eval()
    x = torch.randn(2, 3, 64, 96)
    output = model(x)
    assert output.shape == shape and not [k for k in model.state_dict() if "outnorm" in k]
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, output) and len(maps) == 2
    assert torch.equal(model.forward_features(x), output)


def test_deepcopy_and_pickle() -> None:
    for name in ("published", "channel_last", "oncnorm", "onsoftmax"):
        model = build(name).eval()
        x = torch.randn(1, 3, 40, 33)
        for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
            assert torch.equal(clone(x), model(x))
            clone.layers[0].blocks[0].op.Ds.data.zero_()
            assert not torch.equal(clone(x), model(x))


def test_replicas_use_their_own_parameters() -> None:
    """What DataParallel does on each device, done on the CPU: shallow copies with other tensors as parameters."""

    def replica(module: nn.Module, factor: float) -> nn.Module:
        twin = module._replicate_for_data_parallel()
        for key, child in module._modules.items():
            twin._modules[key] = None if child is None else replica(child, factor)
        for key, parameter in module._parameters.items():
            twin._parameters[key] = None if parameter is None else nn.Parameter(parameter.detach() * factor)
        return twin

    model = build().eval()
    assert not any("forward" in m.__dict__ for m in model.modules())
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(1.5)
    x = torch.randn(1, 3, 40, 33)
    assert torch.equal(replica(model, 1.5)(x), scaled(x)) and not torch.equal(scaled(x), model(x))


@pytest.mark.parametrize("name", ["published", "posembed", "vanilla", "m0"])
def test_meta_device_then_weights(name: str) -> None:
    model = build(name, device="meta")
    assert all(p.is_meta for p in model.parameters())
    assert model(torch.randn(1, 3, 40, 33, device="meta")).shape == (1, 10)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    torch.manual_seed(0)
    model.init_weights()
    assert parameters_to_vector(model.parameters()).isfinite().all()
    usual = build(name)
    assert len(list(model.parameters())) == len(list(usual.parameters()))
    for (key, drawn), reference in zip(model.named_parameters(), usual.parameters()):
        spread = reference.detach().std(unbiased=False)
        assert abs(drawn.mean() - reference.mean()) <= 0.8 * spread, key
        assert abs(drawn.std(unbiased=False) - spread) <= 0.4 * spread, key
    with torch.device("meta"):
        assert all(p.is_meta for p in build(name).parameters())


def test_dtype_and_device_reach_every_parameter() -> None:
    for name in ("posembed", "bn", "vanilla", "oncnorm"):
        assert {p.dtype for p in build(name, dtype=torch.float64).parameters()} == {torch.float64}
    backbone = Backbone((0,), depths=(1,), dims=8, dtype=torch.bfloat16)
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["published", "channel_last", "vanilla", "posembed", "down_v2", "m0"])
def test_export_with_dynamic_height_and_width(name: str) -> None:
    model = build(name, drop_path_rate=0.0).eval()
    sides = {2: torch.export.Dim("height", min=32, max=4096), 3: torch.export.Dim("width", min=32, max=4096)}
    with torch.no_grad():
        exported = torch.export.export(model, (torch.randn(1, 3, 61, 48),), dynamic_shapes={"x": sides}).module()
        for size in ((61, 48), (40, 97)):
            x = torch.randn(1, 3, *size)
            assert torch.allclose(exported(x), model(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python", "ignore::DeprecationWarning:torch.jit")
@pytest.mark.parametrize("name", ["published", "vanilla", "posembed", "m0"])
def test_a_trace_serves_other_sizes(name: str, tmp_path: Path) -> None:
    model = build(name).eval()
    with torch.no_grad():
        torch.jit.trace(model, torch.randn(2, 3, 64, 48)).save(tmp_path / "model.pt")
        traced = torch.jit.load(tmp_path / "model.pt")
        for size in ((2, 3, 64, 48), (1, 3, 75, 50)):
            x = torch.randn(size)
            assert torch.allclose(traced(x), model(x), atol=1e-5)


@pytest.mark.parametrize("name", ["published", "gate", "m0"])
def test_compile_as_one_graph_with_dynamic_sizes(name: str) -> None:
    torch._dynamo.reset()
    model = build(name, depths=(1,)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 81, 63)
    torch._dynamo.mark_dynamic(x, 2)
    torch._dynamo.mark_dynamic(x, 3)
    for image in (x, torch.randn(2, 3, 64, 100)):
        with torch._dynamo.config.patch(error_on_recompile=True):
            gradients = []
            for function in (model, compiled):
                model.zero_grad()
                function(image).square().sum().backward()
                gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert torch.allclose(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@each_option
def test_on_gpu(name: str, gpu: torch.device) -> None:
    model = build(name).eval()
    x = torch.randn(2, 3, 50, 37)
    expected = model(x)
    moved = copy.deepcopy(model).to(gpu)
    found = moved(x.to(gpu))
    assert torch.allclose(found.cpu(), expected, atol=1e-4)
    found.square().sum().backward()
    expected.square().sum().backward()
    for (key, p), q in zip(moved.named_parameters(), model.parameters()):
        assert torch.allclose(p.grad.cpu(), q.grad, rtol=2e-3, atol=2e-4 * float(q.grad.abs().max()) + 1e-6), key
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert (moved(x.to(gpu)).float().cpu() - expected).norm() <= 0.08 * expected.norm()


def test_options_can_be_given_by_name() -> None:
    text, named = build(forward_type="v05_noz"), build(forward_type=ForwardType(gate=False))
    assert torch.equal(parameters_to_vector(text.parameters()), parameters_to_vector(named.parameters()))


def plain_mlp(mlp: Mlp, x: torch.Tensor) -> torch.Tensor:
    return mlp.fc2(F.gelu(mlp.fc1(x)))


def test_the_mlp_is_its_plain_layers_whatever_runs_it() -> None:
    mlp, x = Mlp(24, 40), torch.randn(2, 5, 5, 24)
    torch.testing.assert_close(mlp(x), plain_mlp(mlp, x))
    grads = [torch.autograd.grad(f.square().sum(), list(mlp.parameters())) for f in (mlp(x), plain_mlp(mlp, x))]
    torch.testing.assert_close(*grads)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), plain_mlp(mlp, x))
    with torch.autocast("cpu", torch.bfloat16):
        assert mlp(x).dtype is torch.bfloat16
    assert mlp.bfloat16()(x.bfloat16()).dtype is torch.bfloat16


def test_hooks_and_replaced_layers_of_the_mlp_are_called() -> None:
    mlp, x, seen = Mlp(4, 6), torch.randn(3, 4), []
    handle = mlp.fc1.register_forward_hook(lambda *_: seen.append("fc1"))
    mlp(x)
    handle.remove()
    mlp.act.register_forward_hook(lambda *_: seen.append("act"))
    mlp(x)
    assert seen == ["fc1", "act"]

    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    mlp = Mlp(4, 6)
    doubled = Doubled(4, 6)
    doubled.load_state_dict(mlp.fc1.state_dict())
    mlp.fc1 = doubled
    torch.testing.assert_close(mlp(x), mlp.fc2(F.gelu(doubled(x))))
