"""Cross scan and cross merge at copying speed in PyTorch, on any device.

Channel-last, every order is a copy of whole rows of C numbers by index, and the merge a sum of K such rows.
Channel-first, orders made of flips and transpositions are copied as such; any other order is the reference's gather.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from . import reference
from .orders import find_order, inverse_map, map_caches, order_map


@lru_cache(maxsize=128)
def _rows_to_read(order: str, H: int, W: int, device: torch.device, one_by_one: bool) -> Tensor:
    """int64 [L*K]: for each (l, k) the row of [L, C], or one by one of [L*K, C], that a channel-last scan copies."""
    with torch.inference_mode(False), torch.no_grad():
        maps = order_map(order, H, W, device)
        if one_by_one:
            maps = maps * len(maps) + torch.arange(len(maps), device=device)[:, None]
        return maps.t().reshape(-1)


@lru_cache(maxsize=128)
def _rows_to_sum(order: str, H: int, W: int, device: torch.device) -> Tensor:
    """int64 [L, K]: the rows of [L*K, C] that belong to each position of the image."""
    with torch.inference_mode(False), torch.no_grad():
        maps = inverse_map(order, H, W, device)
        return (maps * len(maps) + torch.arange(len(maps), device=device)[:, None]).t().contiguous()


map_caches.extend((_rows_to_read, _rows_to_sum))


def scan(x: Tensor, order: str, in_cf: bool, out_cf: bool, one_by_one: bool) -> Tensor:
    """As `reference.scan`: the image is brought to the layout of the result first, because it is the smaller."""
    if out_cf:
        x = x if in_cf else x.movedim((1, 2), (-2, -1))
        return _scan_channel_first(x, order, one_by_one)
    x = x.movedim((-2, -1), (1, 2)) if in_cf else x
    batch, H, W = x.shape[:3]
    sequences, channels = find_order(order).sequences, x.shape[-1]
    stored = H * W * (sequences if one_by_one else 1)
    rows = _rows_to_read(order, H, W, x.device, one_by_one)
    return x.contiguous().view(batch, stored, channels).index_select(1, rows).view(batch, H * W, sequences, channels)


def merge(y: Tensor, order: str, in_cf: bool, out_cf: bool, one_by_one: bool) -> Tensor:
    """As `reference.merge`: the sum is taken in the layout of the sequences, then brought to the other one."""
    if in_cf:
        x = _merge_channel_first(y, order, one_by_one)  # [B, (K,) C, L]
        return x if out_cf else x.movedim(-1, 1).contiguous()
    batch, H, W, sequences, channels = y.shape
    rows = _rows_to_sum(order, H, W, y.device)  # [L, K]
    y = y.contiguous().view(batch, H * W * sequences, channels)
    if one_by_one:
        x = y.index_select(1, rows.view(-1)).view(batch, H * W, sequences, channels)
    else:
        x = _sum_rows(y, rows)  # [B, L, C]
    return x.movedim(1, -1).contiguous() if out_cf else x


def _sum_rows(y: Tensor, rows: Tensor) -> Tensor:
    """[B, L, C]: the sums of the rows [L, K] of y [B, L*K, C]."""
    batch, total, channels = y.shape
    if y.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16) or y.numel() == 0:
        return y.index_select(1, rows.view(-1)).view(batch, *rows.shape, channels).sum(2, dtype=y.dtype)
    first = torch.arange(0, batch * total, total, device=y.device)
    rows = (rows + first[:, None, None]).view(-1, rows.shape[1])
    x = torch.nn.functional.embedding_bag(rows, y.view(-1, channels), mode="sum")
    return x.view(batch, -1, channels)


def _scan_channel_first(x: Tensor, order: str, one_by_one: bool) -> Tensor:
    """[B, K, C, L] from [B, (K,) C, H, W]."""
    found = find_order(order)
    if not found.moves:
        return reference.scan(x, order, True, True, one_by_one)
    batch, channels, H, W = x.shape[0], *x.shape[-3:]
    y = x.new_empty(batch, found.sequences, channels, H * W)
    for k, move in enumerate(found.moves):
        read = move.apply(x[:, k] if one_by_one else x)
        y[:, k].view(read.shape).copy_(read)
    return y


def _merge_channel_first(y: Tensor, order: str, one_by_one: bool) -> Tensor:
    """[B, C, L] or, one by one, [B, K, C, L] from [B, K, C, H, W]."""
    found = find_order(order)
    if not found.moves:
        return reference.merge(y, order, True, True, one_by_one)
    batch, sequences, channels, H, W = y.shape
    y = y.reshape(batch, sequences, channels, H * W)
    narrow = y.dtype in (torch.float16, torch.bfloat16)
    shape = (batch, sequences, channels, H, W) if one_by_one else (batch, channels, H, W)
    x = y.new_empty(shape, dtype=torch.float32 if narrow and not one_by_one else y.dtype)
    for k, move in enumerate(found.moves):
        written = move.undo(y[:, k].view(batch, channels, *((W, H) if move.transpose else (H, W))))
        if one_by_one:
            x[:, k] = written
        elif k == 0:
            x.copy_(written)
        else:
            x += written
    return x.to(y.dtype).flatten(-2)
