"""Cross scan and cross merge in ONNX: a scan order is flips and transpositions, so H and W stay dynamic.

Shapes: B batch, K sequences, C channels, L = H*W.
"""

from __future__ import annotations

from typing import Any

from onnxscript import opset18

from vmamba_kernels.cross_scan.orders import Move, find_order

op: Any = opset18  # its types are narrower than what its functions take
_LEAST = -(2**63)


def ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _flip(image: Any, move: Move, rank: int) -> Any:
    """The image [..., H, W] with the axes of the move flipped."""
    axes = [rank + axis for axis in move.flipped]
    if not axes:
        return image
    n = len(axes)
    return op.Slice(image, ints(*[-1] * n), ints(*[_LEAST] * n), ints(*axes), ints(*[-1] * n))


def read(x: Any, order: str, one_by_one: bool = False) -> Any:
    """[B, K, C, L] from an image [B, C, H, W], or from K images [B, K, C, H, W]."""
    sequences = []
    for k, move in enumerate(find_order(order).moves):
        image = _flip(op.Gather(x, op.Constant(value_int=k), axis=1) if one_by_one else x, move, 4)
        if move.transpose:
            image = op.Transpose(image, perm=[0, 1, 3, 2])
        sequences.append(op.Unsqueeze(op.Reshape(image, ints(0, 0, -1)), ints(1)))
    return op.Concat(*sequences, axis=1)


def put_back(y: Any, order: str, height: Any, width: Any) -> list[Any]:
    """K images [B, C, H, W] from the sequences y [B, K, C, L]; `height` and `width` are tensors of one integer."""
    images = []
    for k, move in enumerate(find_order(order).moves):
        sides = (width, height) if move.transpose else (height, width)
        image = op.Reshape(op.Gather(y, op.Constant(value_int=k), axis=1), op.Concat(ints(0, 0), *sides, axis=0))
        if move.transpose:
            image = op.Transpose(image, perm=[0, 1, 3, 2])
        images.append(_flip(image, move, 4))
    return images


def merged(y: Any, order: str, height: Any, width: Any) -> Any:
    """[B, C, H, W]: the sum of the sequences y [B, K, C, L], each put back."""
    images = put_back(y, order, height, width)
    return images[0] if len(images) == 1 else op.Sum(*images)


def sides(x: Any, axis: int) -> tuple[Any, Any]:
    """H and W of a tensor whose axis `axis` is H, each as a tensor of one integer."""
    return op.Shape(x, start=axis, end=axis + 1), op.Shape(x, start=axis + 1, end=axis + 2)


def cross_scan(
    x: Any, order: str, in_channel_first: bool, out_channel_first: bool, one_by_one: bool, backend: str = ""
) -> Any:
    """The value of `vmamba::cross_scan`."""
    if not in_channel_first:  # [B, H, W, (K,) C]
        x = op.Transpose(x, perm=[0, 3, 4, 1, 2] if one_by_one else [0, 3, 1, 2])
    y = read(x, order, one_by_one)
    return y if out_channel_first else op.Transpose(y, perm=[0, 3, 1, 2])


def cross_merge(
    y: Any, order: str, in_channel_first: bool, out_channel_first: bool, one_by_one: bool, backend: str = ""
) -> Any:
    """The value of `vmamba::cross_merge`."""
    height, width = sides(y, 3 if in_channel_first else 1)
    if not in_channel_first:  # [B, H, W, K, C]
        y = op.Transpose(y, perm=[0, 3, 4, 1, 2])
    y = op.Reshape(y, ints(0, 0, 0, -1))
    if one_by_one:
        x = op.Concat(*(op.Unsqueeze(image, ints(1)) for image in put_back(y, order, height, width)), axis=1)
        x = op.Reshape(x, ints(0, 0, 0, -1))
        return x if out_channel_first else op.Transpose(x, perm=[0, 3, 1, 2])
    x = op.Reshape(merged(y, order, height, width), ints(0, 0, -1))
    return x if out_channel_first else op.Transpose(x, perm=[0, 2, 1])
