"""conv2d: the dense convolution of channel-last images, under a name that compilers leave as it is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..backends import require
from ..companions import check_companions, refuse_tangents
from .op import forward
from .products import gains
from .reference import output_sides

__all__ = ["conv2d", "gains"]


def _pair(name: str, value: int | Sequence[int], least: int) -> list[int]:
    pair = list(value) if isinstance(value, Sequence) else [value, value]
    if len(pair) != 2 or not all(isinstance(side, int) and side >= least for side in pair):
        raise ValueError(f"{name}: expected one or two integers of at least {least}, got {value!r}")
    return pair


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    if x.dim() != 4 or any(size < 1 for size in x.shape[1:]):
        raise ValueError(f"x: expected [B, H, W, C], none but B 0, got {tuple(x.shape)}")
    if not isinstance(groups, int) or groups < 1 or x.shape[3] % groups:
        raise ValueError(f"groups: expected a divisor of C, got {groups} for x {tuple(x.shape)}")
    if (
        weight.dim() != 4
        or weight.shape[1] * groups != x.shape[3]
        or weight.shape[0] % groups
        or any(size < 1 for size in weight.shape)
    ):
        raise ValueError(
            f"weight: expected [O, C / {groups}, m, n], none 0 and O a multiple of {groups}, for x {tuple(x.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected [{weight.shape[0]}], got {tuple(bias.shape)} for x {tuple(x.shape)}")
    check_companions(x, weight=weight, bias=bias)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """torch.conv2d of channel-last images, a new contiguous tensor [B, h, w, O] of x's type.

    Args:
        x: [B, H, W, C], any floating type and strides.
        weight: [O, C / groups, m, n] as torch.nn.Conv2d has it. bias: [O] or None. Both of x's type.
        stride, padding, dilation: one integer, or one for each side. x is 0 outside the image. groups: divides C and O.
        backend: None and "pytorch" are PyTorch's convolution and products; "reference" sums over the taps.

    Differentiable once in every tensor; x and weight are saved for the backward, and a gradient that no one asks for is
    not computed. On a CPU the gradient of a float32 weight of 16 or more channels is a product with the windows of x.

    Raises:
        ValueError: a wrong shape, type, device or option, a size other than B of 0, a kernel larger than the padded
            image, or an unknown backend.

    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998, section II.
    """
    _check(x, weight, bias, groups)
    steps, around, apart = _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 1)
    if any(side < 1 for side in output_sides(x, weight, steps, around, apart)):
        raise ValueError(f"weight: {tuple(weight.shape)} is larger than the padded image of x {tuple(x.shape)}")
    if backend is not None:
        backend = require("conv2d", backend, x.device.type).name
    refuse_tangents("conv2d", x, weight, bias)
    return forward(x, weight, bias, steps, around, apart, groups, backend or "")
