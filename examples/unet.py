"""A U-Net on the four levels of a VMamba, trained for a few steps to find shapes: ``python examples/unet.py``.

The encoder is any model with `features_only`; the decoder upsamples from level to level and joins the level above.
"""

from __future__ import annotations

import argparse

import timm
import torch
import torch.nn.functional as F
from skimage.draw import disk, polygon
from torch import Tensor, nn

import vmamba.models  # noqa: F401  registers the encoders with timm


class Up(nn.Module):
    """Maps a coarse map, and the finer one `skip` of the encoder, to the size of `skip`."""

    def __init__(self, coarse: int, fine: int, out: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(coarse + fine, out, 3, padding=1), nn.GroupNorm(1, out), nn.GELU())

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
        return self.mix(torch.cat([x, skip], dim=1))


class UNet(nn.Module):
    """Maps images [B, in_chans, H, W] of any size to class scores [B, classes, H, W] of each pixel."""

    def __init__(self, encoder: str, classes: int, **kwargs) -> None:
        super().__init__()
        self.encoder = timm.create_model(encoder, features_only=True, **kwargs)
        widths = self.encoder.feature_info.channels()
        pairs = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.ups = nn.ModuleList(Up(coarse, fine, fine) for coarse, fine in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        *skips, y = self.encoder(x)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            y = up(y, skip)
        return F.interpolate(self.head(y), x.shape[2:], mode="bilinear", align_corners=False)


def shapes(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noisy images [count, 3, size, size] of a disk and a triangle, and maps [count, size, size]: 0, 1, 2."""
    labels = torch.zeros(count, size, size, dtype=torch.long)
    for label in labels:
        a, b, c, d = (torch.rand(4, generator=generator) * size).tolist()
        rows, columns = polygon([a, (a + size / 2) % size, b], [c, d, (c + size / 2) % size], (size, size))
        label[rows, columns] = 2
        rows, columns = disk((b, d), size / 5, shape=(size, size))
        label[rows, columns] = 1
    colours = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.4, 0.2], [0.2, 0.5, 0.9]])
    images = colours[labels].permute(0, 3, 1, 2)
    return images + 0.1 * torch.randn(images.shape, generator=generator), labels


def train(model: nn.Module, steps: int, size: int, batch: int = 4) -> list[float]:
    """Return the loss of each step."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        images, labels = shapes(batch, size, generator)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.inference_mode()
def accuracy(model: nn.Module, size: int) -> float:
    """Return the share of right pixels on new images."""
    images, labels = shapes(8, size, torch.Generator().manual_seed(1))
    return (model.eval()(images).argmax(1) == labels).float().mean().item()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="vmamba_tiny_s1l8")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    model = UNet(options.encoder, classes=3)
    losses = train(model, options.steps, options.size)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, {accuracy(model, options.size):.1%} of the pixels right")


if __name__ == "__main__":
    main()
