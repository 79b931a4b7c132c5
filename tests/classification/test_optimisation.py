"""Learning rates, weight decay, losses, averages, accumulation, and what happens when a loss is not finite."""

from __future__ import annotations

import copy
import logging
import math

import numpy as np
import pytest
import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from classification.averaging import build_average
from classification.config import load_config
from classification.mixing import AnySizeMixup, build_criterion, build_mixing, mixing_until
from classification.optim import build_optimizer, learning_rate_scale, undecayed_parameters
from classification.precision import Precision
from classification.schedule import build_schedule
from classification.train import Trainer, TrainingStopped, forward_backward, update, window_of
from classification.world import World
from vmamba.errors import UserError
from vmamba.models.vssm import VSSM


def config_of(*opts):
    return load_config(opts=[str(o) for o in opts])[0]


def trainer_of(config, network: nn.Module, criterion: nn.Module | None = None) -> Trainer:
    optimizer = build_optimizer(config, network, World())
    return Trainer(
        config=config, world=World(), network=network, model=network, optimizer=optimizer,
        schedule=build_schedule(config, optimizer, 10, 1.0), criterion=criterion or nn.CrossEntropyLoss(), mixing=None,
        precision=Precision(config, torch.device("cpu")), average=build_average(config, network),
        logger=logging.getLogger("test"),
    )  # fmt: skip


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def batch(images: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(images, 3, 2, 2, generator=source), torch.randint(0, 3, (images,), generator=source)


# learning rate


def test_learning_rate_scales_with_images_per_update():
    config = config_of("DATA.BATCH_SIZE", 128, "TRAIN.ACCUMULATION_STEPS", 2)
    assert learning_rate_scale(config, World(0, 8)) == 4.0
    optimizer = build_optimizer(config, linear(), World(0, 8))
    assert [group["lr"] for group in optimizer.param_groups] == [2e-3, 2e-3]


def rates(scale: float, *opts) -> list[float]:
    """The rate of every update: 10 updates an epoch, 10 epochs, 2 of them warm-up."""
    config = config_of("TRAIN.EPOCHS", 10, "TRAIN.WARMUP_EPOCHS", 2, "TRAIN.BASE_LR", 1.0, "TRAIN.WARMUP_LR", 0.1,
                       "TRAIN.MIN_LR", 0.2, "DATA.BATCH_SIZE", int(512 * scale), *opts)  # fmt: skip
    optimizer = build_optimizer(config, linear(), World())
    schedule = build_schedule(config, optimizer, 10, scale)
    found = [optimizer.param_groups[0]["lr"]]
    for number in range(1, 100):
        schedule.step_update(number)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_cosine(scale):
    found = np.array(rates(scale)) / scale
    warm = 0.1 + 0.9 * np.arange(20) / 20
    cosine = 0.2 + 0.4 * (1 + np.cos(math.pi * np.arange(80) / 80))
    np.testing.assert_allclose(found, np.concatenate([warm, cosine]), rtol=1e-9)


def test_cosine_without_warmup_prefix_starts_at_update_0():
    found = rates(1.0, "TRAIN.LR_SCHEDULER.WARMUP_PREFIX", False)
    assert found[20] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * 20 / 100)))


def test_linear_step_multistep():
    line = rates(1.0, "TRAIN.LR_SCHEDULER.NAME", "linear")
    assert line[0] == 0.1 and line[20] == 1.0 and line[60] == pytest.approx(0.6) and line[99] == pytest.approx(0.21)
    step = rates(1.0, "TRAIN.LR_SCHEDULER.NAME", "step", "TRAIN.LR_SCHEDULER.DECAY_EPOCHS", 3)
    assert step[20:51:10] == [1.0, 1.0, 1.0, 0.1] and step[80] == pytest.approx(0.01)
    multi = rates(1.0, "TRAIN.LR_SCHEDULER.NAME", "multistep", "TRAIN.LR_SCHEDULER.MULTISTEPS", "[4, 8]")
    assert multi[39] == 1.0 and multi[40] == pytest.approx(0.1)
    assert multi[79] == pytest.approx(0.1) and multi[80] == pytest.approx(0.01)


# weight decay


def names(network: nn.Module, rule: str) -> tuple[set[str], set[str]]:
    optimizer = build_optimizer(config_of("TRAIN.DECAY_GROUPS", rule), network, World())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    name_of = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed, free = ({name_of.pop(id(p)) for p in group["params"]} for group in optimizer.param_groups)
    assert not name_of and free == undecayed_parameters(network, rule)
    return decayed, free


def endings(names: set[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def test_weight_decay_groups_published_and_corrected():
    network = VSSM(dims=[8, 16], depths=[1, 1], num_classes=3, posembed=True, imgsize=16, norm_layer="ln")
    decayed, free = names(network, "published")
    assert {"x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "weight"} == endings(decayed)
    assert {"pos_embed", "Ds", "weight", "bias"} == endings(free)
    shapes = {name: parameter.ndim for name, parameter in network.named_parameters()}
    assert free == {name for name in shapes if shapes[name] == 1 or name == "pos_embed"}
    decayed, free = names(network, "corrected")
    assert {"x_proj_weight", "dt_projs_weight", "weight"} == endings(decayed)
    assert {"A_logs", "Ds", "dt_projs_bias", "pos_embed"} <= endings(free)


def test_timm_models_keep_their_own_exemptions():
    network = timm.create_model("test_vit", num_classes=3)
    assert {"pos_embed", "cls_token"} <= names(network, "published")[1]


@pytest.mark.parametrize(("name", "kind"), [("adamw", "AdamW"), ("sgd", "SGD"), ("lamb", "Lamb")])
def test_optimizers(name, kind):
    optimizer = build_optimizer(config_of("TRAIN.OPTIMIZER.NAME", name), linear(), World())
    assert type(optimizer).__name__ == kind and [g["weight_decay"] for g in optimizer.param_groups] == [0.05, 0.0]


def test_unknown_optimizer():
    with pytest.raises(UserError, match="'adamv' is unknown. Did you mean 'adam"):
        build_optimizer(config_of("TRAIN.OPTIMIZER.NAME", "adamv"), linear(), World())


# losses and mixing


@pytest.mark.parametrize("mixup", [0.0, 0.8])
@pytest.mark.parametrize("cutmix", [0.0, 1.0])
@pytest.mark.parametrize("minmax", [None, [0.2, 0.8]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_criterion_fits_the_targets(mixup, cutmix, minmax, smoothing):
    config = config_of(
        "AUG.MIXUP", mixup, "AUG.CUTMIX", cutmix, "MODEL.LABEL_SMOOTHING", smoothing, "MODEL.NUM_CLASSES", 3
    )
    config.AUG.CUTMIX_MINMAX = minmax
    mixing = build_mixing(config)
    criterion = build_criterion(config, mixing)
    mixes = bool(mixup or cutmix or minmax)
    expected = SoftTargetCrossEntropy if mixes else LabelSmoothingCrossEntropy if smoothing else nn.CrossEntropyLoss
    assert (mixing is not None) == mixes and type(criterion) is expected
    images, labels = batch(6)
    targets = mixing(images, labels)[1] if mixing else labels
    assert math.isfinite(criterion(torch.randn(6, 3), targets))


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_binary_cross_entropy(mixup):
    config = config_of("TRAIN.LOSS.NAME", "bce", "AUG.MIXUP", mixup, "AUG.CUTMIX", 0.0, "MODEL.NUM_CLASSES", 3)
    mixing = build_mixing(config)
    logits, (images, labels) = torch.randn(6, 3), batch(6)
    on, off = 0.9 + 0.1 / 3, 0.1 / 3
    targets = mixing(images, labels)[1] if mixing else labels
    hard = torch.full((6, 3), off).scatter(1, labels[:, None], on) if mixing is None else targets
    expected = nn.functional.binary_cross_entropy_with_logits(logits, hard)
    torch.testing.assert_close(build_criterion(config, mixing)(logits, targets), expected)
    config.TRAIN.LOSS.BCE_THRESHOLD, config.TRAIN.LOSS.BCE_SUM = 0.2, True
    expected = nn.functional.binary_cross_entropy_with_logits(logits, (hard > 0.2).float(), reduction="sum") / 6
    torch.testing.assert_close(build_criterion(config, mixing)(logits, targets), expected)


def test_mixing_stops_at_its_epoch():
    config = config_of("AUG.MIXUP_OFF_EPOCH", 2, "AUG.CUTMIX", 0.0, "MODEL.NUM_CLASSES", 3)
    mixing = build_mixing(config)
    prepare = mixing_until(config, mixing)
    images, labels = batch(4)
    for epoch, mixed in enumerate([True, True, False, False]):
        prepare(epoch)
        found, targets = mixing(images.clone(), labels)
        assert torch.equal(found, images) != mixed
        assert mixed or torch.equal(targets.argmax(1), labels), "the labels are smoothed all the same"
    mixing_until(config_of(), None)(5)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_mixing_takes_odd_batches(mode, size):
    mixing = AnySizeMixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode=mode, num_classes=3, label_smoothing=0.1)
    images, labels = batch(size)
    last = images[-1].clone()
    mixed, targets = mixing(images, labels)
    assert mixed.shape == (size, 3, 2, 2) and targets.shape == (size, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(size))
    if size % 2:
        assert torch.equal(mixed[-1], last) and targets[-1].argmax() == labels[-1]


# average


def test_average_formula_constant_decay():
    config = config_of("EMA.DECAY", 0.9)
    network = linear()
    average = build_average(config, network)
    expected = network[1].weight.detach().clone()
    for number in range(1, 4):
        with torch.no_grad():
            network[1].weight.add_(number)
        average.update(network, number)
        expected = 0.9 * expected + 0.1 * network[1].weight.detach()
    torch.testing.assert_close(average.network[1].weight, expected)


def test_average_with_warmup_follows_a_short_run():
    config = config_of("EMA.DECAY", 0.9999, "EMA.WARMUP", True)
    network = linear()
    average = build_average(config, network)
    with torch.no_grad():
        network[1].weight.fill_(1.0)
    average.update(network, 1)
    assert torch.equal(average.network[1].weight, network[1].weight)
    with torch.no_grad():
        network[1].weight.fill_(2.0)
    average.update(network, 11)
    decay = 1 - 11 ** (-2 / 3)
    torch.testing.assert_close(average.network[1].weight, torch.full((3, 12), decay * 1.0 + (1 - decay) * 2.0))


def test_no_average_when_off():
    assert build_average(config_of("EMA.ENABLE", False), linear()) is None


# updates


@pytest.mark.parametrize("clip", [5.0, 0.1])
def test_accumulation_equals_the_large_batch(clip):
    images, labels = batch(12)
    parts = trainer_of(config_of("TRAIN.CLIP_GRAD", clip), linear())
    whole = trainer_of(config_of("TRAIN.CLIP_GRAD", clip), linear())
    for part in range(3):
        inside = slice(4 * part, 4 * part + 4)
        forward_backward(parts, images[inside], labels[inside], window=3, synchronise=part == 2)
    forward_backward(whole, images, labels, window=1, synchronise=True)
    for a, b in zip(parts.network.parameters(), whole.network.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    norms = [update(t, torch.ones(()), 0, 0) for t in (parts, whole)]
    assert norms[0] == pytest.approx(norms[1])
    for a, b in zip(parts.network.parameters(), whole.network.parameters()):
        torch.testing.assert_close(a, b)


def test_the_last_window_of_an_epoch_may_be_short():
    found = [window_of(step, 7, 3) for step in range(7)]
    assert found == [(3, False), (3, False), (3, True), (3, False), (3, False), (3, True), (1, True)]
    assert window_of(0, 1, 4) == (1, True)


class Faulty(nn.Module):
    """A loss that is NaN when told so."""

    faulty = False

    def forward(self, logits, labels):
        loss = nn.functional.cross_entropy(logits, labels)
        return loss * float("nan") if self.faulty else loss


def one_step(trainer: Trainer) -> float | None:
    loss = forward_backward(trainer, *batch(4), window=1, synchronise=True)
    return update(trainer, torch.isfinite(loss).float(), 0, trainer.updates)


def test_a_loss_that_is_not_finite_moves_nothing_but_the_schedule(caplog):
    criterion = Faulty()
    trainer = trainer_of(config_of("TRAIN.MAX_NONFINITE", 3, "EMA.DECAY", 0.5), linear(), criterion)
    assert one_step(trainer) > 0
    before = copy.deepcopy(
        (trainer.network.state_dict(), trainer.optimizer.state_dict()["state"], trainer.average.network.state_dict())
    )
    criterion.faulty = True
    assert one_step(trainer) is None and one_step(trainer) is None
    after = (
        trainer.network.state_dict(),
        trainer.optimizer.state_dict()["state"],
        trainer.average.network.state_dict(),
    )
    assert all(torch.equal(before[0][k], after[0][k]) and torch.equal(before[2][k], after[2][k]) for k in before[0])
    assert all(torch.equal(before[1][i][k], after[1][i][k]) for i in before[1] for k in before[1][i])
    assert trainer.updates == 3 and "1 in a row, 3 stop" in caplog.text and "2 in a row" in caplog.text
    criterion.faulty = False
    assert one_step(trainer) > 0 and trainer.nonfinite_in_a_row == 0
    criterion.faulty = True
    one_step(trainer), one_step(trainer)
    with pytest.raises(TrainingStopped, match="not finite 3 times in a row .*epoch 0, step 6"):
        one_step(trainer)


def test_float16_overflow_halves_the_scale_and_skips_the_average():
    config = config_of("AMP_DTYPE", "float16", "EMA.DECAY", 0.5)
    trainer = trainer_of(config, linear())
    assert trainer.precision.scaler.is_enabled() and trainer.precision.scale == 65536
    with torch.no_grad():
        trainer.network[1].bias[0] = 1.0
    loss = forward_backward(trainer, *batch(4), window=1, synchronise=True)
    next(trainer.network.parameters()).grad[0, 0] = math.inf
    before = copy.deepcopy((trainer.network.state_dict(), trainer.average.network.state_dict()))
    assert update(trainer, torch.isfinite(loss).float(), 0, 0) is None
    assert trainer.precision.scale == 32768 and trainer.nonfinite_in_a_row == 0
    for old, network in zip(before, (trainer.network, trainer.average.network)):
        assert all(torch.equal(old[k], v) for k, v in network.state_dict().items())


def test_an_infinite_gradient_without_a_scale_moves_nothing():
    trainer = trainer_of(config_of("AMP_DTYPE", "bfloat16", "EMA.DECAY", 0.5), linear())
    loss = forward_backward(trainer, *batch(4), window=1, synchronise=True)
    next(trainer.network.parameters()).grad[0, 0] = math.inf
    before = copy.deepcopy((trainer.network.state_dict(), trainer.average.network.state_dict()))
    assert loss.isfinite() and update(trainer, torch.ones(()), 0, 0) is None
    assert trainer.precision.scale == 1 and trainer.nonfinite_in_a_row == 1 and not trainer.optimizer.state
    for old, network in zip(before, (trainer.network, trainer.average.network)):
        assert all(torch.equal(old[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("opts", "device", "expected"),
    [
        ((), "cpu", None), ((), "cuda", torch.float16), (("AMP_ENABLE", "False"), "cuda", None),
        (("AMP_DTYPE", "bfloat16"), "cpu", torch.bfloat16), (("AMP_DTYPE", "bfloat16"), "cuda", torch.bfloat16),
    ],
)  # fmt: skip
def test_precision(opts, device, expected, monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: enabled)
    precision = Precision(config_of(*opts), torch.device(device))
    assert precision.dtype == expected and precision.scaler == (expected == torch.float16)


def test_bfloat16_on_a_cpu_trains():
    trainer = trainer_of(config_of("AMP_DTYPE", "bfloat16"), linear())
    first = forward_backward(trainer, *batch(16), window=1, synchronise=True)
    assert next(trainer.network.parameters()).grad.dtype == torch.float32
    for _ in range(30):
        update(trainer, torch.ones(()), 0, 0)
        last = forward_backward(trainer, *batch(16), window=1, synchronise=True)
    assert last < first
