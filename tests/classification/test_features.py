"""What changes the way of computing and not its result, and rates that reach the network."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from classification import world
from classification.build import build_network
from classification.config import load_config
from classification.world import World
from vmamba.models.from_config import model_from_config
from vmamba.weights import load_checkpoint

LOGGER = logging.getLogger("test")
TINY = ["MODEL.VSSM.EMBED_DIM", "[8, 16]", "MODEL.VSSM.DEPTHS", "[1, 1]", "MODEL.VSSM.SSM_D_STATE", "1"]


def config_of(*opts):
    return load_config(opts=[str(o) for o in opts])[0]


@pytest.mark.parametrize("kind", ["vssm", "timm"])
def test_the_configured_rates_reach_the_network(kind):
    rates = ["MODEL.DROP_RATE", 0.25, "MODEL.DROP_PATH_RATE", 0.5, "MODEL.TYPE", kind, "MODEL.NAME", "test_vit"]
    network = model_from_config(config_of(*TINY, *rates))
    assert max(m.drop_prob for m in network.modules() if isinstance(m, DropPath)) == 0.5
    assert 0.25 in [m.p for m in network.modules() if isinstance(m, nn.Dropout)]


@pytest.mark.parametrize("kind", ["vssm", "timm"])
def test_gradient_checkpointing_changes_no_gradient(kind):
    gradients = []
    for use in (False, True):
        torch.manual_seed(0)
        network = model_from_config(config_of(*TINY, "TRAIN.USE_CHECKPOINT", use, "MODEL.DROP_PATH_RATE", 0.0,
                                              "MODEL.TYPE", kind, "MODEL.NAME", "test_vit"))  # fmt: skip
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        size = 160 if kind == "timm" else 32
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            network.train()(images).square().mean().backward()
        gradients.append(({n: p.grad for n, p in network.named_parameters()}, saved))
    (plain, much), (recomputed, little) = gradients
    assert little < much
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-6)


def test_compiled_training_is_the_same_training(tiny_config, run_main, tmp_path):
    config = tiny_config(TRAIN__EPOCHS=1, TRAIN__OPTIMIZER={"EPS": 1e-3})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for tag, more in (("plain", []), ("compiled", ["--compile", "eager"])):
        code, _, errors = run_main("--cfg", config, "--tag", tag, *more)
        assert code == 0, errors
        assert (torch._dynamo.utils.counters["frames"]["ok"] > 0) == bool(more)
    plain, compiled = (load_checkpoint(tmp_path / "out" / "tiny" / tag / "last.pth") for tag in ("plain", "compiled"))
    assert plain["model"].keys() == compiled["model"].keys()
    for key, value in plain["model"].items():
        torch.testing.assert_close(compiled["model"][key], value, rtol=1e-3, atol=1e-4)


def test_an_unknown_compiler_is_one_line(tiny_config, run_main):
    code, _, errors = run_main("--cfg", tiny_config(), "--compile", "inducter")
    assert code == 2 and "TRAIN.COMPILE 'inducter' is unknown" in errors and "Did you mean 'inductor'?" in errors


@pytest.mark.parametrize("on", [False, True])
def test_channels_last_reaches_weights_and_images(on):
    config = config_of("TRAIN.CHANNELS_LAST", on, "MODEL.TYPE", "timm", "MODEL.NAME", "test_resnet")
    network = build_network(config, World(), LOGGER)
    seen = []
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    for module in convolutions:
        module.register_forward_hook(lambda m, x, y: seen.append(x[0].is_contiguous(memory_format=torch.channels_last)))
    images = torch.randn(2, 3, 64, 64)
    logits = network.eval()(images)
    assert seen == [on] * len(convolutions)
    other = timm.create_model("test_resnet", num_classes=1000)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other.eval()(images), logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("share", "set_to"), [(0.5, [(0.5, 0)]), (-1.0, []), (1.0, [])])
def test_the_memory_limit_is_set(monkeypatch, share, set_to):
    calls: list[tuple[float, int]] = []
    monkeypatch.setattr(world, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: calls.append(given))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    with world.start_world("auto", share) as found:
        assert found.device == torch.device("cuda", 0)
    assert calls == set_to
