"""Cross scan and cross merge by Triton: what `triton_kernels.py` is told of layouts, strides and tiles.

Inputs of any strides are read where they lie, unless H and W cannot be seen as one axis; results are contiguous.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from .orders import find_order, inverse_map, order_map
from .triton_kernels import map_kernel, moves_kernel

_LONGEST_RUN = 16  # elements: 128 bits of the narrowest type


class _View(NamedTuple):
    """A tensor as the kernels see it: [B, K, C, L] through its strides, that of K being 0 where it has no K."""

    tensor: Tensor
    strides: tuple[int, int, int, int]

    @property
    def along_l(self) -> bool:
        return self.strides[2] != 1

    def run(self, axis: int, *lengths: int) -> int:
        """Elements along C (axis 2) or L (axis 3) that one access may take; runs are cut at these lengths."""
        others = self.strides[:axis] + self.strides[axis + 1 :]
        return gcd(_LONGEST_RUN, *others, *lengths) if self.strides[axis] == 1 else 1


def _view(tensor: Tensor, channel_first: bool) -> _View:
    """The view of [B, (K,) C, L] or [B, L, (K,) C]."""
    names = "BKCL" if channel_first else "BLKC"
    names = names if tensor.dim() == 4 else names.replace("K", "")
    strides = dict(zip(names, tensor.stride(), strict=True))
    strides |= {name: 0 for name, size in zip(names, tensor.shape) if size == 1 and name in "BK"}
    return _View(tensor, (strides["B"], strides.get("K", 0), strides["C"], strides["L"]))


def scan(x: Tensor, order: str, in_cf: bool, out_cf: bool, one_by_one: bool) -> Tensor:
    """As `reference.scan`."""
    batch, channels, H, W = (x.shape[0], *x.shape[-3:]) if in_cf else (x.shape[0], x.shape[-1], *x.shape[1:3])
    sequences = find_order(order).sequences
    y = x.new_empty((batch, sequences, channels, H * W) if out_cf else (batch, H * W, sequences, channels))
    image = x.flatten(-2) if in_cf else x.flatten(1, 2)
    _move(_view(image, in_cf), _view(y, out_cf), order, (batch, channels, H, W), False, one_by_one)
    return y


def merge(y: Tensor, order: str, in_cf: bool, out_cf: bool, one_by_one: bool) -> Tensor:
    """As `reference.merge`."""
    batch, channels, H, W = (y.shape[0], *y.shape[-3:]) if in_cf else (y.shape[0], y.shape[-1], *y.shape[1:3])
    kept = (find_order(order).sequences,) if one_by_one else ()
    x = y.new_empty((batch, *kept, channels, H * W) if out_cf else (batch, H * W, *kept, channels))
    sequences = y.flatten(-2) if in_cf else y.flatten(1, 2)
    _move(_view(x, out_cf), _view(sequences, in_cf), order, (batch, channels, H, W), True, one_by_one)
    return x


def _move(
    image: _View, sequences: _View, order: str, sizes: tuple[int, int, int, int], merges: bool, one_by_one: bool
) -> None:
    """Fill the sequences from the image or, if it `merges`, the image from the sequences."""
    batch, channels, H, W = sizes
    if 0 in sizes:
        return
    found = find_order(order)
    float32 = image.tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
    with torch.cuda.device_of(image.tensor):
        if found.moves:
            _launch_moves(image, sequences, sizes, _encoded(found.moves), merges, one_by_one, float32)
            return
        # The positions that are written lie side by side: those of the image in a merge, else of the sequences.
        source, target = (sequences, image) if merges else (image, sequences)
        maps = (inverse_map if merges else order_map)(order, H, W, image.tensor.device)
        _launch_map(source, target, maps, batch, channels, merges and not one_by_one, float32)


def _encoded(moves: tuple[tuple[bool, bool, bool], ...]) -> tuple[int, int]:
    """K, and 3 bits for each move, the first the lowest."""
    bits = [flip_h | flip_w << 1 | transpose << 2 for flip_h, flip_w, transpose in moves]
    return len(bits), sum(move << 3 * k for k, move in enumerate(bits))


def _launch_moves(
    image: _View,
    sequences: _View,
    sizes: tuple[int, int, int, int],
    moves: tuple[int, int],
    merges: bool,
    one_by_one: bool,
    float32: bool,
) -> None:
    batch, channels, H, W = sizes
    block_h, block_w, block_c, warps = moves_tile(channels, H, W, image.along_l, sequences.along_l)
    moves_kernel[(batch * cdiv(H, block_h) * cdiv(W, block_w) * cdiv(channels, block_c),)](
        image.tensor,
        sequences.tensor,
        H,
        W,
        channels,
        *image.strides,
        *sequences.strides,
        K=moves[0],
        MOVES=moves[1],
        MERGE=merges,
        ONE_BY_ONE=one_by_one,
        FLOAT32=float32,
        ALONG_L=sequences.along_l,
        RUN_IMAGE_W=min(image.run(3, W), block_w),
        RUN_IMAGE_C=min(image.run(2, channels), block_c),
        RUN_H=min(sequences.run(3, H), block_h),
        RUN_W=min(sequences.run(3, W), block_w),
        RUN_C=min(sequences.run(2, channels), block_c),
        BLOCK_H=block_h,
        BLOCK_W=block_w,
        BLOCK_C=block_c,
        num_warps=warps,
        num_stages=1,
    )


def _launch_map(
    source: _View, target: _View, maps: Tensor, batch: int, channels: int, sums: bool, float32: bool
) -> None:
    sequences, length = maps.shape
    block_l, block_c, warps = map_tile(channels, length, source.along_l, target.along_l)
    map_kernel[(batch * cdiv(length, block_l) * cdiv(channels, block_c),)](
        source.tensor,
        target.tensor,
        maps,
        length,
        channels,
        *source.strides,
        *target.strides,
        K=sequences,
        SUM=sums,
        FLOAT32=float32,
        RUN_SOURCE_C=min(source.run(2, channels), block_c),
        RUN_L=min(target.run(3, length), block_l),
        RUN_C=min(target.run(2, channels), block_c),
        BLOCK_L=block_l,
        BLOCK_C=block_c,
        num_warps=warps,
        num_stages=1,
    )


def _block(length: int, most: int, least: int) -> int:
    """A power of two up to `most` that leaves few lanes idle: one that divides the length, if not below `least`."""
    dividing = gcd(length, most)
    return dividing if dividing >= least else min(next_power_of_2(length), most)


def moves_tile(
    channels: int, H: int, W: int, image_along_l: bool, sequences_along_l: bool
) -> tuple[int, int, int, int]:
    """BLOCK_H, BLOCK_W, BLOCK_C and warps: 2048 elements, as long as can be along the axes that are contiguous."""
    if not image_along_l and not sequences_along_l:
        block_c = _block(channels, 128, 32)
        block_w = _block(W, 2048 // block_c, 8)
        return min(next_power_of_2(H), 2048 // (block_c * block_w)), block_w, block_c, 4
    both = image_along_l and sequences_along_l
    side = 32 if both else 16
    block_h, block_w = _block(H, side, 16), _block(W, side, 16)
    most = max(2048 // (block_h * block_w), 1) if both else 16
    return block_h, block_w, min(next_power_of_2(channels), most), 4 if both else 8


def map_tile(channels: int, length: int, source_along_l: bool, target_along_l: bool) -> tuple[int, int, int]:
    """BLOCK_L, BLOCK_C and warps, as `moves_tile`."""
    if not source_along_l and not target_along_l:
        block_c = _block(channels, 128, 32)
    else:
        block_c = min(next_power_of_2(channels), 4 if source_along_l and target_along_l else 32)
    return min(next_power_of_2(length), 2048 // block_c), block_c, 4
