"""From the tokens of Vim to logits: the class tokens, or a pooling of the others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import UserError
from .class_tokens import without_tokens
from .layers import find

POOLS = ("token", "avg", "max", "last", "")
_PUBLISHED = {"none": "last", "mean": "avg", "max": "max", "all": ""}


def pool_name(global_pool: str | None, final_pool_type: str, class_token: str) -> str:
    """One of `POOLS`: `global_pool` if given; else the class token where there is one; else the published type's."""
    if global_pool is None:
        pool = find("final_pool_type", final_pool_type, _PUBLISHED)
        return pool if class_token == "none" else "token"
    if find("global_pool", global_pool, POOLS) == "token" and class_token == "none":
        raise UserError("global_pool: 'token' needs a class token, which this model is built without; use 'avg'")
    return global_pool.lower()


def pooled_logits(x: Tensor, places: Sequence[int], pool: str, head: nn.Module) -> Tensor:
    """Logits [B, num_classes] of tokens [B, L, D] with class tokens at `places`; of every token [B, L, ..] for "".

    "token": of the mean of the class tokens; "avg" and "last": of the mean or the last of the others; "max": the
    largest of the logits of the others, as published.
    """
    if pool == "":
        return head(x)
    if pool == "token":
        return head(x[:, places[0]] if len(places) == 1 else x[:, list(places)].mean(1))
    x = without_tokens(x, places)
    if pool == "max":
        return head(x).amax(1)
    return head(x.mean(1) if pool == "avg" else x[:, -1])
