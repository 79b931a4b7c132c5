"""Name what image files show: ``python -m vmamba.predict --weights best.pth IMAGE...``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vmamba.command_line import Parser
from vmamba.errors import UserError, exit_on_user_error
from vmamba.image_model import from_checkpoint, open_model


class Predictor:
    """A trained classifier with its transform and class names, rebuilt from one checkpoint of the trainer.

    The averaged weights are used where the checkpoint has them. Classes are numbers where it names fewer than the model
    tells apart. Raises `CheckpointError` for a file without a configuration or with weights that do not fit it.
    """

    def __init__(self, weights: str | Path, device: str | torch.device | None = None) -> None:
        self.opened = from_checkpoint(weights, device)
        self.device = self.opened.device
        self.model: nn.Module = self.opened.network
        self.transform = self.opened.transform
        self.mode = self.opened.mode
        self.class_names: list[str] = self.opened.class_names

    def read(self, path: str | Path) -> Tensor:
        """Return the image file as the model's input [C, H, W]; a `UserError` names a file that is not an image."""
        return self.opened.read(path)

    def __call__(self, paths: Sequence[str | Path], k: int = 5) -> Iterable[list[tuple[str, float]]]:
        """Yield, for each image file, its `k` likeliest (class name, probability), likeliest first."""
        for path in paths:
            yield self.opened.classify(path, k)


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m vmamba.predict", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", type=Path)
    parser.add_argument("--weights", type=Path, help="a checkpoint; alone: one of the trainer, such as best.pth")
    parser.add_argument("--model", metavar="NAME", help="a model of this package; alone: with its released weights")
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="classes to print (default 5)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default): a GPU when there is one")
    arguments = parser.parse(argv)
    if arguments.topk < 1:
        raise UserError(f"--topk {arguments.topk}: give at least 1")
    if arguments.model is None and arguments.weights is None:
        parser.error("one of these is required: --model or --weights")
    opened = open_model(arguments.model, arguments.weights, arguments.device)
    for path in arguments.images:
        answers = opened.classify(path, arguments.topk)
        print(path)
        for name, probability in answers:
            print(f"  {probability:7.2%}  {name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
