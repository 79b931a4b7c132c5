"""The network that a command looks at: a model by name or configuration, its weights, the images it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from vmamba.building import build, names_a_config
from vmamba.counting import check_size
from vmamba.devices import choose_device
from vmamba.errors import UserError
from vmamba.image_model import ImageModel, classes_of, from_checkpoint, from_network
from vmamba.models.config_file import read_model_config
from vmamba.models.from_config import input_channels, model_from_config
from vmamba.preprocess import evaluation_transform, image_mode, with_size
from vmamba.weights import load_checkpoint, load_weights

DEFAULT = "vmamba_tiny_s1l8"
Size = tuple[int, int]


@dataclass
class Subject:
    """A network in evaluation and its transform, and what it was opened by: see `open_subject`.

    `name` is what tables and pictures call it; `model` is None where the weights' file names the model; `trained` is
    whether the weights are the file's.
    """

    name: str
    opened: ImageModel
    size: Size
    model: str | None
    file: Path | None = None
    seed: int = 0
    channels: int = 3
    trained: bool = False

    @property
    def weights(self) -> str:
        """Where its weights are from, in words."""
        return f"weights {self.file.name}" if self.file and self.trained else f"random weights, seed {self.seed}"

    @property
    def network(self) -> nn.Module:
        """The network."""
        return self.opened.network

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.opened.device

    def read(self, picture: Image.Image) -> Tensor:
        """Return a picture as a batch of one, [1, C, H, W], on the network's device."""
        return self.opened.read(picture)[None].to(self.device)

    def described(self) -> str:
        """Return name, weights and size of the images in a few words."""
        return f"{self.name} ({self.weights}) at {self.size[0]}x{self.size[1]}"

    def at(self, size: Size) -> Subject:
        """Return the subject opened again for images of another size, which models of fixed size need."""
        again = open_subject(self.model, self.file, size, self.device, self.seed)
        return replace(again if self.trained or self.file is None else again.untrained(self.seed), name=self.name)

    def untrained(self, seed: int) -> Subject:
        """Return the subject opened again with random weights in place of those of its file."""
        payload = {} if self.file is None else load_checkpoint(self.file)
        torch.manual_seed(seed)
        if self.model is None:
            network = model_from_config(payload["config"])
        else:
            network, _ = build(self.model, self.size, classes_of(payload) if payload else None)
        opened = replace(self.opened, network=network.requires_grad_(False).to(self.device).eval())
        return replace(self, opened=opened, trained=False, seed=seed)


def open_subject(
    model: str | None,
    weights: Path | None = None,
    size: Size | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Subject:
    """Return the network that `model` names, a name of ours or timm's or a yaml file, with weights of a file or random.

    Weights alone are a checkpoint of the trainer, which says its model. `size` None is the model's own; `seed` draws
    random weights. Raises `UserError` for what is unknown, does not fit or does not run at that size.
    """
    if model is None and weights is not None:
        opened, name = from_checkpoint(weights, device, size), weights.stem
    else:
        opened, name = _built(model or DEFAULT, weights, size, choose_device(device), seed)
    blank = opened.read(Image.new(opened.mode, (64, 64)))
    found = (int(blank.shape[1]), int(blank.shape[2]))
    check_size(opened.network, found)
    opened.network.requires_grad_(False)
    named = model or (DEFAULT if weights is None else None)
    return Subject(name, opened, found, named, weights, seed, blank.shape[0], trained=weights is not None)


def _built(
    model: str, weights: Path | None, size: Size | None, device: torch.device, seed: int
) -> tuple[ImageModel, str]:
    payload = None if weights is None else load_checkpoint(weights)
    classes = None if payload is None else classes_of(payload)
    torch.manual_seed(seed)
    network, size = build(model, size, classes)
    if payload is not None:
        load_weights(network, payload, prefer_ema=True, quiet=True)
    opened = from_network(network, device, size)
    if names_a_config(model):
        config = read_model_config(model)
        if "MEAN" in config["DATA"] and "STD" in config["DATA"]:
            opened.transform = evaluation_transform(with_size(config, size))
        opened.mode = image_mode(input_channels(config))
        return opened, Path(model).stem
    return opened, model


def open_subjects(
    model: str | None,
    weights: Path | None,
    compared: Sequence[str],
    size: Size | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> list[Subject]:
    """Return the subject of `model` and `weights`, then those compared with it, each "NAME" or "NAME=WEIGHTS".

    A name that comes again is numbered. All must take images of as many channels.
    """
    subjects = [open_subject(model, weights, size, device, seed)]
    for text in compared:
        name, _, file = text.partition("=")
        if not name:
            raise UserError(f"--compare {text}: give NAME, or NAME=WEIGHTS")
        subjects.append(open_subject(name, Path(file) if file else None, size, device, seed))
        again = sum(subject.name.partition(" #")[0] == subjects[-1].name for subject in subjects[:-1])
        if again:
            subjects[-1].name += f" #{again + 1}"
        if subjects[-1].channels != subjects[0].channels:
            raise UserError(f"--compare {name}: it takes images of other channels than {subjects[0].name}")
    return subjects
