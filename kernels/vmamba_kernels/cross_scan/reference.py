"""Cross scan and cross merge by their definition: a gather along L with the map of the order, or with its inverse.

B batch, K sequences, C channels, H x W positions, L = H*W. cf = channel-first.
"""

from __future__ import annotations

from torch import Tensor

from .orders import inverse_map, order_map


def scan(x: Tensor, order: str, in_cf: bool, out_cf: bool, one_by_one: bool) -> Tensor:
    """[B, K, C, L] or [B, L, K, C] from the image [B, C, H, W] or [B, H, W, C]; one by one, from an image with K."""
    H, W = x.shape[-2:] if in_cf else x.shape[1:3]
    maps = order_map(order, H, W, x.device)
    x = x.flatten(-2) if in_cf else x.flatten(1, 2).movedim(1, -1)  # [B, (K,) C, L]
    x = x if one_by_one else x.unsqueeze(1).expand(-1, len(maps), -1, -1)
    y = x.gather(3, maps[None, :, None].expand_as(x))  # [B, K, C, L]
    return y if out_cf else y.movedim(3, 1).contiguous()


def merge(y: Tensor, order: str, in_cf: bool, out_cf: bool, one_by_one: bool) -> Tensor:
    """[B, C, L] or [B, L, C], the sum of the K sequences put back in row-major order; one by one, with K and no sum."""
    H, W = y.shape[-2:] if in_cf else y.shape[1:3]
    maps = inverse_map(order, H, W, y.device)
    y = y.flatten(-2) if in_cf else y.flatten(1, 2).movedim(1, -1)  # [B, K, C, L]
    x = y.gather(3, maps[None, :, None].expand_as(y))
    x = x if one_by_one else x.sum(1, dtype=x.dtype)  # [B, (K,) C, L]
    return x.contiguous() if out_cf else x.movedim(-1, 1).contiguous()
