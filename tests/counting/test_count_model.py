"""Counting leaves the model as it was, counts what it should, and refuses what it cannot."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from vmamba.counting import activation_memory, count_model, rule
from vmamba.counting.rules import rule_of
from vmamba.errors import UserError
from vmamba.models.vssm import VSSM
from vmamba_kernels.depthwise_silu import fuses

SMALL = dict(depths=(1, 1), dims=16, num_classes=7)


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.fused:
            return nn.functional.scaled_dot_product_attention(q, k, v)
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v


@pytest.mark.parametrize("fused", [True, False])
def test_products_outside_layers_count_by_operator(fused):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Attention(fused))
    count = count_model(model, 4)
    assert count.layers["0"] == 16 * 3 * 8 and count.layers["1.qkv"] == 16 * 8 * 24
    assert count.layers["1"] == sum(count.uncovered.values()) == 2 * (2 * 16 * 16 * 4)


def test_multi_head_attention_is_not_hidden_by_its_fast_path():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.embed = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return self.layer(self.embed(x).flatten(2).transpose(1, 2))

    expected = 16 * 8 * (3 * 8 + 8 + 2 * 16) + 2 * 16 * 16 * 8 + 2 * 5 * 16 * 8 + 16 * 24
    assert count_model(Encoder(), 4).macs == expected
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    "layer, expected",
    [
        (nn.Conv2d(3, 8, 3, padding=1, groups=1, bias=False), 64 * 8 * 27),
        (nn.ConvTranspose2d(3, 5, 2, 2), 64 * 3 * 5 * 4),
        (nn.BatchNorm2d(3), 2 * 192),
        (nn.BatchNorm2d(3, affine=False), 192),
        (nn.GroupNorm(1, 3), 5 * 192),
        (nn.LayerNorm(8, elementwise_affine=False), 4 * 192),
        (nn.AdaptiveAvgPool2d(1), 192),
        (nn.GELU(), 0),
    ],
)
def test_a_layer(layer, expected):
    assert count_model(nn.Sequential(layer), 8).macs == expected


def test_a_new_kind_of_layer_brings_its_rule():
    class Doubling(nn.Module):
        def forward(self, x):
            return x @ x

    class Tripling(Doubling):
        pass

    model = nn.Sequential(nn.Conv2d(3, 3, 1), Tripling())
    assert count_model(model, 4).uncovered == {"aten::bmm": 3 * 4**3}
    rule(Doubling)(lambda layer, x, y: 17)
    assert rule_of(Tripling()) is rule_of(Doubling()) is not None
    assert count_model(model, 4).layers["1"] == 17 and not count_model(model, 4).uncovered


# Millions of parameters and billions of MACs that timm's own benchmark tables state.
@pytest.mark.parametrize(
    "name, parameters, gflops",
    [("resnet18", 11.69, 1.82), ("vit_tiny_patch16_224", 5.72, 1.26), ("swin_tiny_patch4_window7_224", 28.29, 4.51)],
)
def test_models_of_timm(name, parameters, gflops):
    with torch.device("meta"):
        model = timm.create_model(name)
    count = count_model(model)
    assert count.parameters / 1e6 == pytest.approx(parameters, abs=0.01)
    assert count.gflops == pytest.approx(gflops, rel=0.01)


def test_the_model_stays_as_it_was():
    model = VSSM(**SMALL, norm_layer="bn").train()
    model.layers[0].eval()
    training = [m.training for m in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    count_model(model, 32)
    activation_memory(model, 32)
    assert training == [m.training for m in model.modules()]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    model(torch.zeros(2, 3, 32, 32)).sum().backward()


def test_a_model_on_meta_stays_there():
    with torch.device("meta"):
        model = VSSM(**SMALL)
    with pytest.raises(UserError):
        count_model(model, 1)
    count_model(model, 64)
    assert all(p.is_meta and type(p) is nn.Parameter for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_frozen_parameters_are_told():
    model = VSSM(**SMALL)
    model.patch_embed.requires_grad_(False)
    count = count_model(model, 32)
    assert count.parameters - count.trainable == sum(p.numel() for p in model.patch_embed.parameters())


@pytest.mark.parametrize(
    "size, batch, words",
    [(0, 1, "size: expected"), ((8, 8, 8), 1, "size: expected"), (2, 1, "does not run on images"), (32, 0, "batch")],
)
def test_bad_sizes(size, batch, words):
    for count in (count_model, activation_memory):
        with pytest.raises(UserError, match=words):
            count(VSSM(**SMALL), size, batch)


def saved_bytes(model, x) -> int:
    """What autograd keeps, by its own hooks: each storage once, without the parameters; and the output."""
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    for tensor in (x, output):
        kept[tensor.untyped_storage()._cdata] = tensor
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in parameters)


@pytest.mark.parametrize(
    "kwargs", [dict(), dict(forward_type="v05", norm_layer="ln2d"), dict(forward_type="m0_noz", ssm_init="v2")]
)
def test_training_memory_is_what_autograd_keeps(kwargs):
    model = VSSM(**SMALL, **kwargs).eval()
    x = torch.zeros(2, 3, 64, 48)
    assert activation_memory(model, (64, 48), 2).training == saved_bytes(model, x)


def test_memory_on_a_device_that_is_not_here():
    """A GPU's kernels keep a state every 32 steps, the CPU's every 64: 32 more of 4 x 32 x 16 for 2048 positions.

    Where the CPU's convolution computes its sums again, a GPU alone keeps them: 32 for each position.
    """
    model = VSSM(**{**SMALL, "depths": (1,), "dims": (16,), "ssm_d_state": 16, "mlp_ratio": 0.0}, device="meta")
    cpu, cuda = (activation_memory(model, (128, 256), 1, device) for device in ("cpu", "cuda"))
    states = (2048 // 32 - 2048 // 64) * 4 * 32 * 16 * 4
    sums = 2048 * 32 * 4 if fuses(torch.float32, 3, "cpu") else 0
    assert cuda.training - cpu.training == states + sums and cuda.inference >= cpu.inference
    assert all(p.is_meta for p in model.parameters())


def test_memory_of_a_chain_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 1))
    memory = activation_memory(model, 10, batch=3)
    position = 3 * 10 * 10 * 4  # bytes of one float32 channel
    assert memory.inference == (3 + 4 + 4) * position  # the images are held by the caller all the while
    assert memory.training == (3 + 4 + 2) * position  # images, the sigmoid's result, the output
