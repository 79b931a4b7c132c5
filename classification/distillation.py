"""Knowledge distillation: a trained teacher beside the labels."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from yacs.config import CfgNode

from classification.finetuning import fill
from classification.world import World
from vmamba.errors import UserError, closest
from vmamba.models.from_config import input_channels, model_from_config
from vmamba.weights import load_checkpoint

DISTILLATIONS = ("none", "soft", "hard")


class Distillation:
    """The loss (1 - alpha) * criterion(labels) + alpha * loss(teacher).

    ``soft``: tau^2 times the Kullback-Leibler divergence of the softened predictions, its mean over the images
    (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015). ``hard``: cross entropy with the teacher's
    first guess (Touvron et al., "Training data-efficient image transformers & distillation through attention", 2021).
    A student with a distillation token has two outputs: the labels teach the first, the teacher the second.
    """

    def __init__(self, config: CfgNode, teacher: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        settings = config.DISTILL
        self.kind, self.alpha, self.tau = settings.TYPE, settings.ALPHA, settings.TAU
        self.teacher = teacher.eval().requires_grad_(False)
        own_mean, own_std, its_mean, its_std = (
            torch.tensor(v)[:, None, None] for v in (config.DATA.MEAN, config.DATA.STD, mean, std)
        )
        # what the student's normalisation has made of an image, into what the teacher's would have
        self._factor, self._shift = own_std / its_std, (own_mean - its_mean) / its_std

    def __call__(self, criterion: nn.Module, guess: Tensor, outputs: Any, targets: Tensor) -> Tensor:
        """Return the loss of a batch: `guess` of the teacher, `outputs` of the student, one or a pair; [B, classes]."""
        first, second = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        guess, student = guess.float(), second.float()
        if self.kind == "hard":
            taught = cross_entropy(student, guess.argmax(1))
        else:
            softened, softened_guess = ((logits / self.tau).log_softmax(1) for logits in (student, guess))
            taught = kl_div(softened, softened_guess, reduction="batchmean", log_target=True) * self.tau**2
        return (1 - self.alpha) * criterion(first.float(), targets) + self.alpha * taught

    @torch.no_grad()
    def guess(self, images: Tensor) -> Tensor:
        """Return the teacher's logits [B, classes] for images that are normalised for the student."""
        factor, shift = (t.to(images.device, images.dtype) for t in (self._factor, self._shift))
        return self.teacher(images * factor + shift)


def build_distillation(config: CfgNode, student: nn.Module, world: World) -> Distillation | None:
    """Return the `Distillation` that ``DISTILL`` asks for, or None; a student with two heads gets both trained.

    The teacher is the timm model ``TEACHER`` (ours among them) with the weights of ``TEACHER_PATH``, or its released
    ones; without a name, the network of the trainer's checkpoint at ``TEACHER_PATH``. Raises `UserError` where it
    tells other classes apart.
    """
    settings = config.DISTILL
    if settings.TYPE == "none" or config.EVAL_MODE:
        return None
    if not (settings.TEACHER or settings.TEACHER_PATH):
        raise UserError("DISTILL.TYPE needs a teacher: --teacher-model NAME, --teacher-path FILE, or both")
    teacher, mean, std = _named(config) if settings.TEACHER else _of_checkpoint(settings.TEACHER_PATH)
    classes = getattr(teacher, "num_classes", config.MODEL.NUM_CLASSES)
    if classes != config.MODEL.NUM_CLASSES:
        raise UserError(f"the teacher tells {classes} classes apart, the data has {config.MODEL.NUM_CLASSES}")
    if not len(mean) == len(std) == input_channels(config):
        raise UserError(f"the teacher reads {len(mean)} channels, the student {input_channels(config)}")
    both_heads = getattr(student, "set_distilled_training", None)
    if callable(both_heads):
        both_heads(True)
    return Distillation(config, teacher.to(world.device), mean, std)


def _named(config: CfgNode) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    settings = config.DISTILL
    importlib.import_module("vmamba.models")
    if not timm.is_model(settings.TEACHER):
        known = closest(settings.TEACHER, timm.list_models())
        raise UserError(f"DISTILL.TEACHER '{settings.TEACHER}' is not a model that timm knows.{known}")
    arguments: dict[str, Any] = {"in_chans": input_channels(config), **settings.TEACHER_ARGS}
    if settings.TEACHER_PATH:
        arguments.setdefault("num_classes", config.MODEL.NUM_CLASSES)
    try:
        teacher = timm.create_model(settings.TEACHER, pretrained=not settings.TEACHER_PATH, **arguments)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"DISTILL.TEACHER '{settings.TEACHER}': {error}; --teacher-path names its weights") from None
    if settings.TEACHER_PATH:
        fill(teacher, load_checkpoint(settings.TEACHER_PATH), settings.TEACHER_PATH, prefer_ema=True)
    own: dict[str, Any] = getattr(teacher, "pretrained_cfg", {})
    if input_channels(config) != len(own.get("mean", ())):
        return teacher, config.DATA.MEAN, config.DATA.STD
    return teacher, own["mean"], own["std"]


def _of_checkpoint(path: str) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    payload = load_checkpoint(path)
    config = payload.get("config")
    if not isinstance(config, dict) or "MODEL" not in config:
        raise UserError(f"{path} does not say what network it holds; --teacher-model names it")
    teacher = model_from_config(config)
    fill(teacher, payload, path, prefer_ema=True)
    return teacher, config["DATA"]["MEAN"], config["DATA"]["STD"]
