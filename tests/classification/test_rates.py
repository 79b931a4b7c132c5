"""Layer-wise rates, the further schedules, clipping, and weight decay and stochastic depth over the run."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

from classification.checks import check_values
from classification.clipping import clip_gradients
from classification.config import load_config
from classification.decay import DecaySchedule
from classification.drop_path import DropPathSchedule
from classification.optim import build_optimizer, learning_rate_scale, parameter_groups
from classification.schedule import PlateauSchedule, build_schedule, continue_schedule, present_rate
from classification.world import World
from vmamba.errors import UserError
from vmamba.models.vssm import VSSM


def config_of(*opts):
    return load_config(opts=[str(o) for o in opts])[0]


def small(**more) -> VSSM:
    torch.manual_seed(0)
    return VSSM(dims=[8, 16], depths=[2, 1], num_classes=3, posembed=True, imgsize=16, ssm_d_state=1, **more)


# rates


def test_the_base_batch_of_the_rate():
    config = config_of("DATA.BATCH_SIZE", 64, "TRAIN.LR_BASE_BATCH", 256)
    assert learning_rate_scale(config, World(0, 8)) == 2.0
    assert learning_rate_scale(config_of("TRAIN.LR_BASE_BATCH", 0), World(0, 8)) == 1.0


@pytest.mark.parametrize("rule", ["published", "corrected"])
def test_layer_decay_falls_from_the_head_to_the_stem(rule):
    network = small()
    groups = parameter_groups(network, 0.05, rule, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    found = {name: scale[id(p)] for name, p in network.named_parameters()}
    assert len(found) == len(list(network.parameters()))
    by_layer = [{v for n, v in found.items() if n.startswith(start)} for start in (
        "classifier.head", "layers.1.blocks.0", "layers.0.blocks.1", "layers.0.blocks.0", "patch_embed")]  # fmt: skip
    assert by_layer == [{1.0}, {0.5}, {0.25}, {0.125}, {0.0625}]
    assert found["pos_embed"] == 0.0625 and found["layers.0.downsample.1.weight"] == 0.25
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    plain = {id(p): g["weight_decay"] for g in parameter_groups(network, 0.05, rule) for p in g["params"]}
    assert decay == plain


def test_layer_decay_goes_through_the_schedule():
    config = config_of("TRAIN.LAYER_DECAY", 0.5, "TRAIN.BASE_LR", 1.0, "DATA.BATCH_SIZE", 512, "TRAIN.EPOCHS", 10,
                       "TRAIN.WARMUP_EPOCHS", 2, "TRAIN.MIN_LR", 0.0)  # fmt: skip
    optimizer = build_optimizer(config, small(), World())
    schedule = build_schedule(config, optimizer, 10, 1.0)
    schedule.step_update(60)
    assert present_rate(optimizer) == pytest.approx(0.5)
    rates = {round(group["lr"], 9) for group in optimizer.param_groups}
    assert rates == {0.5, 0.25, 0.125, 0.0625, 0.03125}


def test_the_least_scale_of_layer_decay():
    groups = parameter_groups(small(), 0.05, "published", layer_decay=0.5, least=0.2)
    assert {group["lr_scale"] for group in groups} == {1.0, 0.5, 0.25, 0.2}


def test_layer_decay_of_a_timm_model():
    groups = parameter_groups(timm.create_model("test_vit", num_classes=3), 0.05, "published", layer_decay=0.75)
    assert max(g["lr_scale"] for g in groups) == 1.0 and len({g["lr_scale"] for g in groups}) > 4


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("lamb", {"betas": (0.8, 0.9)}, {"betas": (0.8, 0.9)}),
        ("adamw", {"amsgrad": True}, {"amsgrad": True, "eps": 1e-8}),
        ("sgd", {"nesterov": False}, {"nesterov": False, "momentum": 0.9}),
        ("muon", {"momentum": 0.8}, {"momentum": 0.8}),
    ],
)
def test_further_arguments_of_an_optimizer(name, settings, expected):
    config = config_of("TRAIN.OPTIMIZER.NAME", name)
    config.TRAIN.OPTIMIZER.ARGS.update(settings)
    optimizer = build_optimizer(config, small(), World())
    assert all(optimizer.defaults[key] == value for key, value in expected.items())


def test_an_argument_that_an_optimizer_does_not_take():
    for name in ("adamw", "lamb"):
        config = config_of("TRAIN.OPTIMIZER.NAME", name, "TRAIN.OPTIMIZER.ARGS.beta", "0.5")
        with pytest.raises(UserError, match=f"TRAIN.OPTIMIZER.ARGS .*'beta': 0.5.* do not fit {name}: .*'beta'"):
            build_optimizer(config, small(), World())


def test_every_optimizer_of_timm_can_be_built():
    failures = {}
    for name in timm.optim.list_optimizers():
        try:
            build_optimizer(config_of("TRAIN.OPTIMIZER.NAME", name), nn.Linear(4, 3), World())
        except (AssertionError, ImportError, RuntimeError) as error:  # those of packages that are not installed
            failures[name] = str(error)
    assert all(name.startswith(("bnb", "fused")) for name in failures), failures


def test_fused_takes_the_same_step():
    networks = [small(), small()]
    x = torch.randn(2, 3, 16, 16)
    for network, fused in zip(networks, (False, True)):
        optimizer = build_optimizer(config_of("TRAIN.OPTIMIZER.FUSED", fused), network, World())
        assert bool(optimizer.defaults["fused"]) == fused
        network.eval()(x).square().sum().backward()
        optimizer.step()
    for a, b in zip(*(network.parameters() for network in networks)):
        torch.testing.assert_close(a, b)


# schedules


def rates(*opts, epochs: int = 10) -> list[float]:
    """The rate of every update: 10 updates an epoch, 10 epochs, 2 of them warm-up."""
    config = config_of("TRAIN.EPOCHS", epochs, "TRAIN.WARMUP_EPOCHS", 2, "TRAIN.BASE_LR", 1.0, "TRAIN.WARMUP_LR", 0.1,
                       "TRAIN.MIN_LR", 0.2, "DATA.BATCH_SIZE", 512, "TRAIN.LR_SCHEDULER.NAME", *opts)  # fmt: skip
    optimizer = build_optimizer(config, nn.Linear(4, 3), World())
    schedule = build_schedule(config, optimizer, 10, 1.0)
    found = []
    for number in range(10 * epochs):
        schedule.step_update(number)
        found.append(present_rate(optimizer))
    return found


WARM = 0.1 + 0.9 * np.arange(20) / 20


def test_poly_and_constant_and_tanh():
    poly = rates("poly", "TRAIN.LR_SCHEDULER.ARGS.power", 2.0)
    np.testing.assert_allclose(poly, np.concatenate([WARM, 0.2 + 0.8 * (1 - np.arange(80) / 80) ** 2]), rtol=1e-9)
    np.testing.assert_allclose(rates("constant"), np.concatenate([WARM, np.ones(80)]), rtol=1e-9)
    tanh = rates("tanh")
    assert tanh[20] == pytest.approx(1.0, abs=1e-3) and all(a > b for a, b in zip(tanh[20:], tanh[21:]))


def test_cosine_with_restarts_and_noise():
    once = rates("cosine", "TRAIN.LR_SCHEDULER.ARGS.cycle_limit", 2, "TRAIN.LR_SCHEDULER.ARGS.t_initial", 40)
    assert once[20] == once[60] == 1.0 and once[59] == pytest.approx(0.2, abs=0.01)
    noisy = rates("cosine", "TRAIN.LR_SCHEDULER.ARGS.noise_range_t", 50)
    plain = rates("cosine")
    assert noisy[:50] == plain[:50] and all(a != b for a, b in zip(noisy[50:], plain[50:]))


@pytest.mark.parametrize("name", ["cosine", "linear", "poly", "tanh"])
def test_cooldown_stays_at_the_lowest_rate(name):
    found = rates(name, "TRAIN.LR_SCHEDULER.COOLDOWN_EPOCHS", 3)
    assert found[70:] == pytest.approx([0.2] * 30) and found[65] > 0.2
    assert found[:70] == pytest.approx(rates(name, epochs=7))


def test_plateau_falls_when_the_score_does_not_rise_and_resumes():
    config = config_of("TRAIN.EPOCHS", 12, "TRAIN.WARMUP_EPOCHS", 2, "TRAIN.BASE_LR", 1.0, "TRAIN.WARMUP_LR", 0.1,
                       "TRAIN.MIN_LR", 0.0, "DATA.BATCH_SIZE", 512, "TRAIN.LR_SCHEDULER.NAME", "plateau",
                       "TRAIN.LR_SCHEDULER.PATIENCE_EPOCHS", 1)  # fmt: skip

    def fresh() -> PlateauSchedule:
        built = build_schedule(config, build_optimizer(config, nn.Linear(4, 3), World()), 10, 1.0)
        assert isinstance(built, PlateauSchedule)
        return built

    scores = [10, 20, 30, 40, 40, 40, 40, 40, 50, 50, 50]
    schedule, found = fresh(), []
    for epoch, score in enumerate(scores):
        schedule.step_update(10 * epoch)
        found.append(present_rate(schedule.optimizer))
        schedule.step(epoch + 1, score)
        if epoch == 4:
            stored = copy.deepcopy(schedule.state_dict())
    expected = [0.1, 0.55, 1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.01]
    assert found == pytest.approx(expected)
    again = fresh()
    continue_schedule(again, 50, 5, stored)
    for epoch in range(5, len(scores)):
        assert present_rate(again.optimizer) == pytest.approx(expected[epoch])
        again.step(epoch + 1, scores[epoch])
    late = fresh()
    continue_schedule(late, 50, 5, None)
    assert present_rate(late.optimizer) == pytest.approx(1.0), "a start after the warm-up is at the base rate"


def test_an_argument_that_a_schedule_does_not_take():
    with pytest.raises(UserError, match="TRAIN.LR_SCHEDULER.ARGS .*'cycles': 3.* do not fit cosine"):
        rates("cosine", "TRAIN.LR_SCHEDULER.ARGS.cycles", 3)


# clipping


def with_gradient() -> VSSM:
    network = small()
    network.eval()(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    return network


def gradient(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
def test_clipping_answers_the_norm_of_the_gradient_as_it_was(mode):
    network, untouched = with_gradient(), with_gradient()
    whole = gradient(untouched)
    for off in (None, 0.0):
        assert clip_gradients(untouched, off, mode).item() == pytest.approx(whole.norm().item())
        assert torch.equal(gradient(untouched), whole)
    norm = clip_gradients(network, 1e-3, mode)
    assert norm.item() == pytest.approx(whole.norm().item(), rel=1e-5)
    clipped = gradient(network)
    if mode == "norm":
        torch.testing.assert_close(clipped, whole * (1e-3 / whole.norm()), rtol=1e-3, atol=1e-8)
    elif mode == "value":
        torch.testing.assert_close(clipped, whole.clamp(-1e-3, 1e-3))
    else:
        head, stem = network.classifier.head.weight, network.patch_embed[0].weight
        assert torch.equal(head.grad, untouched.classifier.head.weight.grad), "the head is left out"
        limit = 1e-3 * stem.flatten(1).norm(dim=1).clamp(min=1e-3)
        assert (stem.grad.flatten(1).norm(dim=1) <= limit * 1.001).all()


@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
@pytest.mark.parametrize("limit", [None, 5.0])
def test_an_infinite_gradient_is_seen(mode, limit):
    network = with_gradient()
    next(network.parameters()).grad.view(-1)[0] = math.inf
    assert not torch.isfinite(clip_gradients(network, limit, mode))


# weight decay


def test_weight_decay_over_the_run():
    config = config_of("TRAIN.WEIGHT_DECAY", 0.04, "TRAIN.WEIGHT_DECAY_END", 0.4)
    network = small()
    optimizer = build_optimizer(config, network, World())
    schedule = DecaySchedule(config, optimizer, 100)
    optimizer.load_state_dict(optimizer.state_dict())  # a resume replaces the groups
    found = []
    for update in (0, 25, 50, 100, 101):
        schedule(update)
        found.append([group["weight_decay"] for group in optimizer.param_groups])
    quarter = 0.4 - 0.36 * (1 + math.sqrt(0.5)) / 2
    assert [first for first, _ in found] == pytest.approx([0.04, quarter, 0.22, 0.4, 0.4])
    assert {second for _, second in found} == {0.0}
    DecaySchedule(config_of("TRAIN.WEIGHT_DECAY", 0.3), optimizer, 100)(0)
    assert optimizer.param_groups[0]["weight_decay"] == found[-1][0]
    for opts in (("TRAIN.WEIGHT_DECAY_END", -1), ("TRAIN.WEIGHT_DECAY", 0, "TRAIN.WEIGHT_DECAY_END", 0.4)):
        with pytest.raises(UserError, match="TRAIN.WEIGHT_DECAY_END .* is where a TRAIN.WEIGHT_DECAY above 0"):
            check_values(config_of(*opts))


# stochastic depth


@pytest.mark.parametrize(
    ("name", "epochs", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]), ("linear", 0, [0, 0.25, 0.5, 0.75]), ("linear", 2, [0, 0.5, 1, 1]),
        ("early", 3, [1, 1, 1, 0]), ("late", 3, [0, 0, 0, 1]),
    ],
)  # fmt: skip
def test_drop_path_over_the_epochs(name, epochs, expected):
    config = config_of("TRAIN.EPOCHS", 4, "TRAIN.DROP_PATH_SCHEDULE.NAME", name,
                       "TRAIN.DROP_PATH_SCHEDULE.EPOCHS", epochs)  # fmt: skip
    network = small(drop_path_rate=0.4)
    blocks = [block.drop_path for stage in network.layers for block in stage.blocks]
    schedule = DropPathSchedule(config, network)
    for epoch, share in enumerate(expected):
        schedule(epoch)
        assert [b.drop_prob for b in blocks] == pytest.approx([0.0, 0.2 * share, 0.4 * share])
