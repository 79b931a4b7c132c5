"""UPerNet on a VMamba in plain PyTorch, from images and label maps: ``python examples/segment.py data/nuclei/mmseg``.

The folder holds images/training, images/validation and, with PNG files of class numbers under the same names,
annotations/training and annotations/validation. Pixels of number 255 count nowhere.
``python -m vmamba.openmmlab.nuclei --out data/nuclei`` makes such a folder of real photographs.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import JaccardIndex
from torchvision import tv_tensors
from torchvision.transforms import v2

import vmamba.models  # noqa: F401  registers the encoders with timm
from vmamba.models.pyramid import UPerNet

UNLABELLED = 255


class Pairs(Dataset):
    """Image [3, H, W] in -1..1 and labels [H, W] of each file of a split, `size` pixels on the shorter side."""

    def __init__(self, root: Path, split: str, size: int, augment: bool) -> None:
        self.images = sorted(path for path in (root / "images" / split).glob("*") if path.suffix in (".png", ".jpg"))
        self.labels = [root / "annotations" / split / f"{path.stem}.png" for path in self.images]
        missing = [path for path in self.labels if not path.is_file()]
        if not self.images or missing:
            raise SystemExit(f"{missing[0] if missing else root / 'images' / split}: nothing there")
        crop = [
            v2.RandomResize(size * 3 // 4, size * 3 // 2),
            v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Mask: UNLABELLED, "others": 0}),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.05),
        ]
        scale = [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)]
        normalize = [v2.Normalize([0.5] * 3, [0.5] * 3)]
        self.transform = v2.Compose((crop if augment else [v2.Resize(size)]) + scale + normalize)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = tv_tensors.Image(np.moveaxis(np.asarray(Image.open(self.images[index]).convert("RGB")), 2, 0).copy())
        labels = tv_tensors.Mask(np.asarray(Image.open(self.labels[index])).copy())
        image, labels = self.transform(image, labels)
        return image.as_subclass(Tensor), labels.as_subclass(Tensor).long()


def count_classes(pairs: Pairs) -> int:
    """Return one more than the highest number in the label maps."""
    numbers = (np.unique(np.asarray(Image.open(path))) for path in pairs.labels)
    return 1 + max(int(n[n != UNLABELLED].max(initial=0)) for n in numbers)


def train(model: nn.Module, pairs: Pairs, steps: int, batch: int, rate: float) -> list[float]:
    """Train by AdamW with a rate that rises for a tenth of the steps, then falls to 0; return the loss of each step."""
    loader = DataLoader(pairs, batch, shuffle=True, drop_last=len(pairs) >= batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(steps, 2), pct_start=0.1)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    losses = []
    model.train()
    for images, labels in itertools.islice(batches, steps):
        scores, auxiliary = model(images)
        loss = F.cross_entropy(scores, labels, ignore_index=UNLABELLED)
        loss = loss + 0.4 * F.cross_entropy(auxiliary, labels, ignore_index=UNLABELLED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.inference_mode()
def evaluate(model: nn.Module, pairs: Pairs, classes: int) -> Tensor:
    """Return the intersection over union of each class [classes] over all images of a split."""
    metric = JaccardIndex("multiclass", num_classes=classes, average="none", ignore_index=UNLABELLED)
    model.eval()
    for image, labels in pairs:
        metric.update(model(image[None]), labels[None])
    return metric.compute()


@torch.inference_mode()
def draw(model: nn.Module, pairs: Pairs, classes: int, path: Path, rows: int = 3) -> None:
    """Write a picture: image, truth and answer of the first `rows` pairs."""
    rows = min(rows, len(pairs))
    figure = Figure(figsize=(7.5, 2.5 * rows), layout="constrained")
    for axes, (image, labels) in zip(figure.subplots(rows, 3, squeeze=False), pairs):
        axes[0].imshow(image.permute(1, 2, 0) / 2 + 0.5)
        axes[1].imshow(labels, vmin=0, vmax=classes - 1, cmap="viridis", interpolation="nearest")
        answer = model.eval()(image[None]).argmax(1)[0]
        axes[2].imshow(answer, vmin=0, vmax=classes - 1, cmap="viridis", interpolation="nearest")
        for axis, title in zip(axes, ("image", "truth", "answer")):
            axis.set_title(title)
            axis.axis("off")
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with images/ and annotations/")
    parser.add_argument("--encoder", default="vmamba_tiny_s1l8", help="any timm model with features_only")
    parser.add_argument("--pretrained", action="store_true", help="start from the encoder's released weights")
    parser.add_argument("--channels", type=int, default=128, help="width of the head; published: 512")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--picture", type=Path, help="write images with truth and answer there")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    training = Pairs(options.data, "training", options.size, augment=True)
    validation = Pairs(options.data, "validation", options.size, augment=False)
    classes = count_classes(training)
    encoder = timm.create_model(options.encoder, features_only=True, pretrained=options.pretrained)
    model = UPerNet(encoder, classes, options.channels, auxiliary=True, auxiliary_channels=options.channels // 2)
    losses = train(model, training, options.steps, options.batch, options.rate)
    scores = evaluate(model, validation, classes)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, mIoU {scores.mean():.1%}")
    print(", ".join(f"class {i}: {score:.1%}" for i, score in enumerate(scores.tolist())))
    if options.picture:
        draw(model, validation, classes, options.picture)


if __name__ == "__main__":
    main()
