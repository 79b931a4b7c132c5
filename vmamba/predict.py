"""Name what image files show: ``python -m vmamba.predict --weights best.pth IMAGE...``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vmamba.command_line import Parser
from vmamba.devices import choose_device
from vmamba.errors import UserError, exit_on_user_error
from vmamba.models.from_config import input_channels, model_from_config
from vmamba.preprocess import IMAGE_ERRORS, evaluation_transform, image_mode, read_image
from vmamba.weights import CheckpointError, load_checkpoint, load_weights

_NEXT_STEP = "name a checkpoint that the trainer wrote"


class Predictor:
    """A trained classifier with its transform and class names, rebuilt from one checkpoint of the trainer.

    The averaged weights are used where the checkpoint has them. Classes are numbers where it names fewer than the model
    tells apart. Raises `CheckpointError` for a file without a configuration or with weights that do not fit it.
    """

    def __init__(self, weights: str | Path, device: str | torch.device | None = None) -> None:
        payload = load_checkpoint(weights)
        config = payload.get("config")
        if not isinstance(config, dict) or not isinstance(config.get("MODEL"), dict):
            raise CheckpointError(f"{weights} holds no configuration; {_NEXT_STEP}")
        self.device = choose_device(device)
        try:
            self.model: nn.Module = model_from_config(config)
            self.transform = evaluation_transform(config)
            self.mode = image_mode(input_channels(config))
            count = int(config["MODEL"]["NUM_CLASSES"])
        except UserError as error:
            raise CheckpointError(f"{weights}: {error}") from error
        except KeyError as error:
            raise CheckpointError(f"{weights}: its configuration lacks {error}; {_NEXT_STEP}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{weights}: its configuration is damaged ({error}); {_NEXT_STEP}") from error
        load_weights(self.model, payload, prefer_ema=True, quiet=True)
        self.model.to(self.device).eval()
        self.class_names: list[str] = _names(payload.get("class_names"), count)

    def read(self, path: str | Path) -> Tensor:
        """Return the image file as the model's input [C, H, W]; a `UserError` names a file that is not an image."""
        if not Path(path).is_file():
            raise UserError(f"there is no image file {path}; check the path")
        try:
            image = read_image(path).convert(self.mode)
        except IMAGE_ERRORS as error:
            raise UserError(f"{path} cannot be read as an image ({error}); give a PNG or JPEG file") from error
        return self.transform(image)

    @torch.inference_mode()
    def __call__(self, paths: Sequence[str | Path], k: int = 5) -> Iterable[list[tuple[str, float]]]:
        """Yield, for each image file, its `k` likeliest (class name, probability), likeliest first."""
        for path in paths:
            logits = self.model(self.read(path)[None].to(self.device))
            probabilities, classes = logits.float().softmax(-1)[0].topk(min(k, logits.shape[-1]))
            names = _names(self.class_names, logits.shape[-1])
            yield [(names[c], p) for c, p in zip(classes.tolist(), probabilities.tolist())]


def _names(named: Sequence[str] | None, count: int) -> list[str]:
    """Return the class names, or numbers where there are fewer names than classes."""
    return list(named) if named and len(named) >= count else [str(c) for c in range(count)]


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m vmamba.predict", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", type=Path)
    parser.add_argument("--weights", required=True, type=Path, help="a checkpoint of the trainer, such as best.pth")
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="classes to print (default 5)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default): a GPU when there is one")
    arguments = parser.parse(argv)
    if arguments.topk < 1:
        raise UserError(f"--topk {arguments.topk}: give at least 1")
    predictor = Predictor(arguments.weights, arguments.device)
    for path, answers in zip(arguments.images, predictor(arguments.images, arguments.topk)):
        print(path)
        for name, probability in answers:
            print(f"  {probability:7.2%}  {name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
