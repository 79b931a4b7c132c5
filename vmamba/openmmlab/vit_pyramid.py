"""Four levels out of the maps of a plain backbone, which are all of one size.

Source: Bao et al., "BEiT: BERT Pre-Training of Image Transformers", 2022, whose UPerNet has it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vmamba.errors import UserError


def vit_pyramid(
    dim: int, stride: int, norm_cfg: dict[str, Any] | None = None, widths: tuple[int, int] | None = None
) -> list[nn.Module]:
    """Return the modules that bring maps [B, dim, H/stride, W/stride] to 1/4, 1/8, 1/16 and 1/32 of the image's size.

    `stride` is 16 or 8; `norm_cfg` is of the one norm, which stride 16 has; `widths` are the channels of maps enlarged
    once and twice, by default `dim`.
    """
    from mmcv.cnn import build_norm_layer

    once, twice = widths or (dim, dim)

    def doubled(channels: int, out: int) -> nn.Module:
        return nn.ConvTranspose2d(channels, out, 2, 2)

    if stride == 16:
        norm = build_norm_layer(norm_cfg or dict(type="BN"), once)[1]
        up = nn.Sequential(doubled(dim, once), norm, nn.GELU(), doubled(once, twice))
        return [up, nn.Sequential(doubled(dim, once)), nn.Identity(), nn.MaxPool2d(2)]
    if stride == 8:
        return [nn.Sequential(doubled(dim, once)), nn.Identity(), nn.MaxPool2d(2), nn.MaxPool2d(4)]
    raise UserError(f"fpn: 'vit' is for patches of 16 or 8 pixels, got a stride of {stride}")
