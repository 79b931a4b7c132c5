"""A teacher beside the labels."""

from __future__ import annotations

import math
import re

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from classification.config import load_config
from classification.distillation import Distillation, build_distillation
from classification.world import World
from vmamba.errors import UserError
from vmamba.weights import save_checkpoint


def config_of(*opts):
    return load_config(opts=[str(o) for o in opts])[0]


def distillation(kind: str, alpha: float = 0.3, tau: float = 2.0) -> Distillation:
    config = config_of("DISTILL.TYPE", kind, "DISTILL.ALPHA", alpha, "DISTILL.TAU", tau)
    return Distillation(config, nn.Flatten(), config.DATA.MEAN, config.DATA.STD)


LOGITS, GUESS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]]), torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 2.0]])
LABELS = torch.tensor([0, 2])


def test_hard_distillation_learns_the_teachers_first_guess():
    found = distillation("hard")(nn.CrossEntropyLoss(), GUESS, LOGITS, LABELS)
    expected = 0.7 * cross_entropy(LOGITS, LABELS) + 0.3 * cross_entropy(LOGITS, torch.tensor([1, 2]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_distillation_by_its_formula(tau):
    found = distillation("soft", tau=tau)(nn.CrossEntropyLoss(), GUESS, LOGITS, LABELS)
    divergence = 0.0
    for guess, logits in zip(GUESS.tolist(), LOGITS.tolist()):
        p, q = ([math.exp(v / tau) / sum(math.exp(w / tau) for w in row) for v in row] for row in (guess, logits))
        divergence += sum(a * math.log(a / b) for a, b in zip(p, q))
    expected = 0.7 * cross_entropy(LOGITS, LABELS) + 0.3 * tau**2 * divergence / 2
    torch.testing.assert_close(found, expected)


def test_a_student_that_agrees_has_nothing_to_learn_from_the_teacher():
    found = distillation("soft", alpha=1.0)(nn.CrossEntropyLoss(), LOGITS, LOGITS, LABELS)
    assert found == pytest.approx(0.0, abs=1e-6)


def test_two_heads_learn_from_the_labels_and_from_the_teacher():
    found = distillation("hard", alpha=0.5)(nn.CrossEntropyLoss(), GUESS, (LOGITS, GUESS), LABELS)
    torch.testing.assert_close(found, (cross_entropy(LOGITS, LABELS) + cross_entropy(GUESS, torch.tensor([1, 2]))) / 2)


def test_the_teacher_sees_images_in_its_own_normalisation():
    config = config_of("DISTILL.TYPE", "soft")
    seen = Distillation(config, nn.Identity(), [0.5, 0.5, 0.5], [0.5, 0.25, 0.5])
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.DATA.MEAN, config.DATA.STD))
    expected = (pixels - 0.5) / torch.tensor([0.5, 0.25, 0.5])[:, None, None]
    torch.testing.assert_close(seen.guess((pixels - mean) / std), expected)
    assert not seen.guess(pixels.requires_grad_()).requires_grad


def test_a_timm_teacher_with_weights_teaches_a_student_with_a_distillation_token(tmp_path):
    weights = timm.create_model("test_vit", num_classes=3)
    save_checkpoint(tmp_path / "t.pth", {"model": weights.state_dict()})
    opts = ["DISTILL.TYPE", "hard", "DISTILL.TEACHER", "test_vit", "DISTILL.TEACHER_PATH", tmp_path / "t.pth"]
    student = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, depth=1, img_size=32)
    built = build_distillation(config_of(*opts, "MODEL.NUM_CLASSES", 3), student, World())
    assert not built.teacher.training and not any(p.requires_grad for p in built.teacher.parameters())
    assert torch.equal(built.teacher.head.weight, weights.head.weight)
    images = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(built.teacher(images), weights.eval()(images))
    outputs = student.train()(torch.randn(2, 3, 32, 32))
    assert isinstance(outputs, tuple), "both heads are trained"
    assert built(nn.CrossEntropyLoss(), GUESS, outputs, LABELS).requires_grad
    assert isinstance(student.eval()(torch.randn(2, 3, 32, 32)), torch.Tensor)


def test_no_teacher_unless_asked_for():
    assert build_distillation(config_of(), nn.Identity(), World()) is None


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ([], "DISTILL.TYPE needs a teacher: --teacher-model NAME"),
        (["DISTILL.TEACHER", "resnet51"], "'resnet51' is not a model that timm knows.*Did you mean 'resnet"),
        (["DISTILL.TEACHER", "test_vit", "DISTILL.TEACHER_PATH", "/no.pth"], "there is no checkpoint /no.pth"),
        (["DISTILL.TEACHER", "test_vit", "DISTILL.TEACHER_PATH", "bare"], "bare.pth does not fit"),
        (["DISTILL.TEACHER_PATH", "bare"], "does not say what network it holds; --teacher-model names it"),
        (["DISTILL.TEACHER", "test_vit", "DISTILL.TEACHER_ARGS.depht", "1", "DISTILL.TEACHER_PATH", "bare"], "depht"),
    ],
)
def test_a_teacher_that_cannot_be_had_is_one_line(tmp_path, opts, message):
    save_checkpoint(tmp_path / "bare.pth", {"model": {"x": torch.zeros(2)}})
    opts = [str(tmp_path / "bare.pth") if o == "bare" else o for o in opts]
    with pytest.raises(UserError, match=message) as error:
        build_distillation(config_of("DISTILL.TYPE", "soft", *opts), nn.Identity(), World())
    assert "\n" not in str(error.value)


def test_a_run_learns_from_the_checkpoint_of_another(finished_copy, run_main):
    config, folder, _ = finished_copy(2)
    arguments = ["--cfg", config, "--tag", "taught", "--epochs", 1, "--distillation-type", "soft"]
    code, output, errors = run_main(*arguments, "--teacher-path", folder / "best.pth", "--distillation-tau", 2)
    assert code == 0, errors
    assert re.search(r"Train: \[0/1\]\[0/5\].*loss \d", output)


def test_a_teacher_of_other_classes_is_refused(finished_copy):
    _, folder, _ = finished_copy(2)
    opts = ["DISTILL.TYPE", "soft", "DISTILL.TEACHER_PATH", folder / "best.pth", "MODEL.VSSM.IN_CHANS", 1]
    with pytest.raises(UserError, match="the teacher tells 10 classes apart, the data has 7"):
        build_distillation(config_of(*opts, "MODEL.NUM_CLASSES", 7), nn.Identity(), World())
    with pytest.raises(UserError, match="the teacher reads 1 channels, the student 3"):
        build_distillation(config_of(*opts[:4], "MODEL.NUM_CLASSES", 10), nn.Identity(), World())
