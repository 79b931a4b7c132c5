"""Where the class tokens of Vim stand among the tokens of an image, and a position embedding that has their rows.

M tokens of the image in a grid (h, w), n class tokens, D channels. Row l of the embedding belongs to token l.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

CLASS_TOKENS = {"none": 0, "head": 1, "middle": 1, "double": 2}


def class_token_kind(if_cls_token: bool, use_double_cls_token: bool, use_middle_cls_token: bool) -> str:
    """One of `CLASS_TOKENS` from the published switches, of which the first that is set counts."""
    if not if_cls_token:
        return "none"
    if use_double_cls_token:
        return "double"
    return "middle" if use_middle_cls_token else "head"


def class_token_places(kind: str, image_tokens: int) -> tuple[int, ...]:
    """The places of the class tokens in a sequence with M tokens of the image."""
    return {"none": (), "head": (0,), "middle": (image_tokens // 2,), "double": (0, image_tokens + 1)}[kind]


def insert_tokens(x: Tensor, tokens: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """[B, M + n, D]: x [B, M, D] with `tokens`, each [B or 1, 1, D], at the rising `places` of the result."""
    for token, place in zip(tokens, places, strict=True):
        x = torch.cat([x[:, :place], token.expand(x.shape[0], -1, -1), x[:, place:]], dim=1)
    return x


def without_tokens(x: Tensor, places: Sequence[int]) -> Tensor:
    """[B, M, D]: x [B, M + n, D] without the tokens at the rising `places`."""
    for place in reversed(places):
        x = torch.cat([x[:, :place], x[:, place + 1 :]], dim=1)
    return x


def resize_token_embed(
    embed: Tensor, old: tuple[int, int], new: tuple[int, int], kind: str = "none", legacy: bool = False
) -> Tensor:
    """An embedding [1, h*w + n, D] of the grid `old` as one of the grid `new`, by bicubic interpolation, in its type.

    The class tokens' rows stay as they are and stand where the class tokens of the new grid do. As published, which
    `legacy` repeats, the first n rows are taken for the class tokens' and the rest for a square image's, wherever the
    tokens are; with a token in the middle this shifts the rows before it by one.
    """
    places = class_token_places(kind, old[0] * old[1])
    if embed.dim() != 3 or embed.shape[1] != old[0] * old[1] + len(places):
        raise UserError(f"pos_embed: expected [1, {old[0] * old[1] + len(places)}, D], got {tuple(embed.shape)}")
    image, tokens = without_tokens(embed, places), [embed[:, place : place + 1] for place in places]
    if legacy:
        image, tokens = embed[:, len(places) :], list(embed[:, : len(places)].split(1, dim=1))
    table = image.to(torch.float32).unflatten(1, old).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=new, mode="bicubic", align_corners=False)
    image = table.permute(0, 2, 3, 1).flatten(1, 2).to(embed.dtype)
    if legacy:
        return torch.cat([*tokens, image], dim=1)
    return insert_tokens(image, tokens, class_token_places(kind, new[0] * new[1]))


def square_grid(rows: int) -> tuple[int, int] | None:
    """(s, s) for s*s rows, None if there is no such s."""
    side = math.isqrt(max(rows, 0))
    return (side, side) if side and side * side == rows else None
