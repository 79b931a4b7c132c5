"""Published weights of Vim, FastVim and their masked autoencoders, read as those of the model at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from .class_tokens import CLASS_TOKENS, class_token_places, insert_tokens, square_grid
from .network import Shapes
from .rope import Rope

# What a masked autoencoder has beside its encoder.
_DECODER = ("decoder_", "mask_token")


class OfTokens(Protocol):
    """What has to be known of the model at hand: `vmamba.models.Vim` and what descends from it."""

    class_token: str
    legacy_resize: bool
    pos_embed: nn.Parameter | None
    rope: Rope | None

    @property
    def trained_class_token(self) -> str: ...

    @property
    def embedded_token(self) -> str: ...

    def resized_embed(self, pos_embed: Tensor, old: tuple[int, int]) -> Tensor: ...


def read_vim_keys(
    model: OfTokens, state_dict: Mapping[str, Tensor], prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Shapes]]:
    """The weights as the model's, {key: key} of what was put in another order, {key: (old, new shape)} of the resized.

    Only keys that start with `prefix` are read. A position embedding of another grid is resized, from a square grid
    where it is not the model's own; rotations of another grid are the model's. Of a masked autoencoder the encoder is
    taken, and the first row of its position embedding, which is the class token's, goes where the model's class token
    stands, or for a dense backbone stood; with `legacy_resize` it stays, as published.
    """
    state = dict(state_dict)
    renamed: dict[str, str] = {}
    resized: dict[str, Shapes] = {}
    autoencoder = f"{prefix}mask_token" in state
    if autoencoder:
        state = {key: value for key, value in state.items() if not key.startswith(tuple(prefix + d for d in _DECODER))}
    key = f"{prefix}pos_embed"
    embed = state.get(key)
    if embed is not None and embed.dim() == 3 and model.pos_embed is not None:
        # a dense backbone has no class token itself, and takes the row of the classifier's out where that stood
        moves = autoencoder and f"{prefix}cls_token" in state and model.trained_class_token == "middle"
        if moves and not model.legacy_resize:
            rows = embed.shape[1] - 1
            embed = insert_tokens(embed[:, 1:], [embed[:, :1]], class_token_places("middle", rows))
            renamed[key] = key
        found, own = embed.shape[1], model.pos_embed.shape[1]
        old = square_grid(found - CLASS_TOKENS[model.embedded_token])
        if found != own and old is not None:
            resized[key] = (tuple(embed.shape), (1, own, embed.shape[2]))
            embed = model.resized_embed(embed, old)
        state[key] = embed
    if model.rope is not None:
        for name, value in model.rope.named_buffers():
            key = f"{prefix}rope.{name}"
            if key in state and state[key].shape != value.shape:
                resized[key] = (tuple(state[key].shape), tuple(value.shape))
                state[key] = value.detach().clone() if not value.is_meta else torch.empty_like(value)
    return state, renamed, resized
