"""What DeiT's script and Vim's descendant of it can do beside the rest: submodels, no train mode, random tokens."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classification.arguments import parse
from classification.build import check_forward_arguments, forward_without_effect
from classification.checks import ignored_settings
from classification.config import load_config
from classification.labels import LABELS
from classification.mixing import AnySizeMixup, Doubled, SubmodelLoss, build_criterion
from classification.optim import build_optimizer
from classification.precision import Precision
from classification.schedule import build_schedule
from classification.sources import open_source
from classification.train import Trainer, forward_backward
from classification.world import World
from tests.classification.runs import write_images
from vmamba.errors import UserError
from vmamba.models import Vim


def test_submodels_learn_from_the_targets_and_from_each_other() -> None:
    config, _ = load_config(opts=["TRAIN.COSUB", "True", "TRAIN.LOSS.NAME", "bce"])
    criterion = build_criterion(config, None)
    assert isinstance(criterion, SubmodelLoss)
    torch.manual_seed(0)
    logits, targets = torch.randn(8, 3, requires_grad=True), torch.rand(4, 3)
    loss = criterion(logits, targets)
    one, other = logits.detach().chunk(2)
    own = [F.binary_cross_entropy_with_logits(part, targets) for part in (one, other)]
    mutual = [F.binary_cross_entropy_with_logits(a, b.sigmoid()) for a, b in ((one, other), (other, one))]
    torch.testing.assert_close(loss, sum(own + mutual) / 4)
    [gradient] = torch.autograd.grad(loss, logits)
    # the derivative of a binary cross entropy by a logit; none flows into the one that teaches
    slope = (2 * one.sigmoid() - targets - other.sigmoid()) / (4 * one.numel())
    torch.testing.assert_close(gradient[:4], slope)
    images, labels = Doubled(None)(torch.ones(2, 1, 3, 3), torch.tensor([0, 1]))
    assert images.shape == (4, 1, 3, 3) and labels.tolist() == [0, 1]
    mixed, soft = Doubled(AnySizeMixup(mixup_alpha=0.8, num_classes=3))(torch.randn(4, 1, 3, 3), torch.arange(4) % 3)
    assert torch.equal(mixed[:4], mixed[4:]) and soft.shape == (4, 3)


def test_submodels_need_their_loss() -> None:
    with pytest.raises(UserError, match="TRAIN.COSUB goes with TRAIN.LOSS.NAME bce .* --loss bce"):
        parse(["--cosub"])
    config, _ = parse(["--cosub", "--loss", "bce", "--no-train-mode"])
    assert config.TRAIN.COSUB and not config.TRAIN.TRAIN_MODE


class Told(nn.Module):
    """Notes what its forward was told, and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.seen: list[tuple[bool, bool, int]] = []

    def forward(self, x: Tensor, if_random_token_rank: bool = False) -> Tensor:
        self.seen.append((if_random_token_rank, self.training, len(x)))
        return self.linear(x.flatten(1))


def test_further_arguments_reach_the_training_forward() -> None:
    config, _ = load_config(opts=["TRAIN.FORWARD.if_random_token_rank", "True", "EMA.ENABLE", "False"])
    network = Told()
    check_forward_arguments(config, network)
    optimizer = build_optimizer(config, network, World())
    trainer = Trainer(
        config, World(), network, network, optimizer, build_schedule(config, optimizer, 10, 1.0),
        nn.CrossEntropyLoss(), Doubled(None), Precision(config, torch.device("cpu")), None, logging.getLogger("test"),
    )  # fmt: skip
    trainer.criterion = SubmodelLoss(nn.CrossEntropyLoss())
    trainer.loss_of = LABELS.loss
    forward_backward(trainer, torch.randn(2, 1, 2, 2), torch.tensor([0, 1]), window=1, synchronise=True)
    assert network.seen == [(True, True, 4)] and network.linear.weight.grad is not None
    config, _ = load_config(opts=["TRAIN.FORWARD.if_random_token_ranks", "True"])
    with pytest.raises(UserError, match="Vim takes no 'if_random_token_ranks' .*Did you mean 'if_random_token_rank'"):
        check_forward_arguments(config, Vim(img_size=16, patch_size=4, depth=2, embed_dim=16, num_classes=5))
    config, _ = load_config(opts=["TRAIN.FORWARD.if_random_cls_token_position", "True"])
    check_forward_arguments(config, Vim(img_size=16, patch_size=4, depth=2, embed_dim=16, num_classes=5))


@pytest.mark.parametrize(
    ("kind", "switches"),
    [
        ("none", {"if_cls_token": False}),
        ("double", {"use_double_cls_token": True}),
        ("middle", {}),
        ("head", {"use_middle_cls_token": False}),
    ],
)
def test_a_class_token_that_does_not_move_is_told(kind: str, switches: dict[str, bool]) -> None:
    vim = Vim(img_size=16, patch_size=4, depth=2, embed_dim=16, num_classes=5, **switches)
    assert vim.class_token == kind
    for asked in (True, False):
        config, _ = load_config(opts=["TRAIN.FORWARD.if_random_cls_token_position", str(asked)])
        found = forward_without_effect(config, vim)
        if asked and kind != "head":
            [line] = found
            assert f"has no effect: the network's class token is '{kind}', and only a single one at the head" in line
        else:
            assert found == []


def test_a_run_without_train_mode_drops_nothing(tiny_config, run_main, monkeypatch) -> None:
    seen: list[bool] = []
    before = forward_backward

    def noting(trainer, *args, **kwargs):
        seen.append(trainer.model.training)
        return before(trainer, *args, **kwargs)

    monkeypatch.setattr("classification.train.forward_backward", noting)
    words = ["--cfg", tiny_config(TRAIN__EPOCHS=1, TRAIN__WARMUP_EPOCHS=0), "--batch-size", 700]
    code, _, errors = run_main(*words, "--no-train-mode")
    assert code == 0 and seen == [False, False], errors


@pytest.mark.parametrize(("rank", "classes"), [("", ["crow", "oak", "owl"]), ("kingdom", ["animal", "plant"])])
def test_inaturalist_is_read_from_its_own_files(rank: str, classes: list[str], tmp_path: Path) -> None:
    kinds = [("owl", "animal"), ("oak", "plant"), ("crow", "animal")]
    categories = [{"id": i, "name": name, "kingdom": kingdom} for i, (name, kingdom) in enumerate(kinds)]
    (tmp_path / "categories.json").write_text(json.dumps(categories))
    for split, told in (("train", [2, 0, 1]), ("val", [1])):
        write_images(tmp_path / "all", {split: {str(c): 1 for c in told}})
        images = [{"id": 10 + c, "file_name": f"all/{split}/{c}/0.png"} for c in told]
        annotations = [{"image_id": 10 + c, "category_id": c} for c in reversed(told)]
        (tmp_path / f"{split}2018.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    opts = ["DATA.DATASET", "inat2018", "DATA.DATA_PATH", str(tmp_path), "DATA.TARGET_KEY", rank]
    config, stated = parse(["--opts", *opts])
    assert ignored_settings(config, stated) == []
    train, held_out = (open_source(config, train) for train in (True, False))
    assert train.classes == held_out.classes == classes
    named = [classes[label] for label in train.labels]
    assert named == (["crow", "owl", "oak"] if not rank else ["animal", "animal", "plant"])
    assert train.load(1).size == (12, 12) and held_out.name(0).endswith("all/val/1/0.png")
    config.DATA.TARGET_KEY = "kingdoms"
    with pytest.raises(UserError, match="'kingdoms' is no rank of name, kingdom. Did you mean 'kingdom'"):
        open_source(config, True)
    (tmp_path / "val2018.json").unlink()
    config.DATA.TARGET_KEY = rank
    with pytest.raises(UserError, match="there is no file .*val2018.json, of iNaturalist"):
        open_source(config, False)
