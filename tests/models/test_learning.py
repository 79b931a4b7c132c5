"""A short training without the trainer: a small VMamba learns to tell stripes apart, on every device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.models import VSSM

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def stripes(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy images [count, 3, size, size] of stripes, and their kind: 0, 1 across, 2, 3 down; even wide, odd narrow."""
    kinds = torch.randint(4, (count,), generator=generator)
    phases = 6.3 * torch.rand(count, 1, generator=generator)
    waves = torch.sin(phases + torch.arange(size) * (0.4 + 0.8 * (kinds % 2)[:, None]))
    across, down = waves[:, None, :, None], waves[:, None, None, :]
    images = torch.where((kinds < 2)[:, None, None, None], across, down).expand(count, 3, size, size)
    return images + 0.3 * torch.randn(images.shape, generator=generator), kinds


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("d_state", [1, 4])
def test_it_learns(device: str, d_state: int) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = VSSM(
        depths=(1, 1), dims=(16, 32), num_classes=4, ssm_d_state=d_state, ssm_ratio=1.0, mlp_ratio=2.0,
        drop_path_rate=0.0,
    ).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    losses = []
    for _ in range(40):
        images, kinds = stripes(32, 32, generator)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(images.to(device))
        loss = F.cross_entropy(logits.float(), kinds.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.4 * sum(losses[:3]), losses
    images, kinds = stripes(64, 32, generator)
    model.eval()
    with torch.no_grad():
        right = (model(images.to(device)).argmax(1).cpu() == kinds).float().mean()
    assert right > 0.9
