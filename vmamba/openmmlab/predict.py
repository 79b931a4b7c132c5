"""Draw what a detector or segmentor sees: ``python -m vmamba.openmmlab.predict CONFIG CHECKPOINT IMAGES --out DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import VISUALIZERS

from vmamba.command_line import Parser
from vmamba.devices import choose_device
from vmamba.errors import UserError, exit_on_user_error
from vmamba.features import find_images
from vmamba.openmmlab.checks import image_problem
from vmamba.openmmlab.configs import read_config
from vmamba.openmmlab.models import open_checkpoint, scope_of
from vmamba.openmmlab.running import add_config


def predict(model: Any, image: str | Path) -> Any:
    """Return the sample with the predictions for an image file: `pred_instances`, or `pred_sem_seg`.

    `model` is one of `open_checkpoint`.
    """
    if scope_of(model.cfg) == "mmdet":
        from mmdet.apis import inference_detector

        return inference_detector(model, str(image))
    from mmseg.apis import inference_model

    return inference_model(model, str(image))


def draw(model: Any, image: str | Path, sample: Any, out: str | Path, threshold: float = 0.3) -> None:
    """Write a picture of the image with its predictions; of a detector's, those of a score above `threshold`."""
    import mmcv

    cfg: Config = model.cfg
    visualizer = VISUALIZERS.build({**cfg.visualizer, "vis_backends": None, "name": "pictures"})
    visualizer.dataset_meta = model.dataset_meta
    more = {"pred_score_thr": threshold} if scope_of(cfg) == "mmdet" else {}
    pixels = mmcv.imread(str(image), channel_order="rgb")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    visualizer.add_datasample("picture", pixels, data_sample=sample, draw_gt=False, out_file=str(out), **more)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m vmamba.openmmlab.predict", description=__doc__)
    add_config(parser)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the weights; every key must fit")
    parser.add_argument("images", nargs="+", metavar="IMAGES", type=Path, help="image files, and folders of them")
    parser.add_argument("--out", default=Path("predictions"), type=Path, metavar="DIR", help="(default predictions)")
    parser.add_argument("--threshold", default=0.3, type=float, help="draw detections of a higher score (default 0.3)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default): a GPU when there is one")
    options = parser.parse(argv)
    images = find_images(options.images)
    for image in images:
        if problem := image_problem(image):
            raise UserError(f"the image {image} {problem}; replace it, or leave it out")
    cfg = read_config(options.config, options.cfg_options)
    if scope_of(cfg) == "mmpretrain":
        raise UserError(f"{options.config} is a classifier's; python -m vmamba.predict classifies")
    model = open_checkpoint(cfg, options.checkpoint, choose_device(options.device))
    for image, out in pictures_of(images, options.out).items():
        sample = predict(model, image)
        draw(model, image, sample, out, options.threshold)
        print(f"{out}: {summary(sample, model.dataset_meta.get('classes', ()), options.threshold)}")
    return 0


def pictures_of(images: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Return the picture that each image gets, numbered where names are alike; `UserError` for one over an image."""
    names: dict[str, Path] = {}
    for number, image in enumerate(images):
        names[image.stem if image.stem not in names else f"{image.stem}_{number}"] = image
    pictures = {image: folder / f"{name}.png" for name, image in names.items()}
    over = {path.resolve() for path in pictures.values()} & {image.resolve() for image in images}
    if over:
        raise UserError(f"--out {folder}: {min(over)} would be written over; name another folder")
    return pictures


def summary(sample: Any, classes: Sequence[str], threshold: float = 0.3) -> str:
    """Return how many instances of each class were found, or which part of the image each class takes, in a line."""
    if "pred_instances" in sample:
        found = sample.pred_instances
        labels = found.labels[found.scores > threshold].tolist()
        counted = [(labels.count(label), _name(label, classes)) for label in sorted(set(labels))]
        return ", ".join(f"{n} {name}" for n, name in sorted(counted, reverse=True)) or "nothing found"
    labels = sample.pred_sem_seg.data.flatten()
    shares = [(float((labels == label).float().mean()), _name(int(label), classes)) for label in labels.unique()]
    return ", ".join(f"{share:.0%} {name}" for share, name in sorted(shares, reverse=True))


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else f"class {label}"


if __name__ == "__main__":
    raise SystemExit(main())
