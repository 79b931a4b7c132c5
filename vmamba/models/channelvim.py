"""Vim and FastVim for images of many channels, such as microscopy, where each channel of each patch is a token.

B batch, C' channels given of C, (h, w) grid of patches, D channels of a token.
Source: Kapse et al., "Fast Vision Mamba", 2025 (arXiv 2502.00594); Bao et al., "Channel Vision Transformers", 2024, for
the sampling of channels. The keys are the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .class_tokens import class_token_places, insert_tokens, without_tokens
from .fastvim import FastVim, VimLN
from .layers import find
from .vim import Sequence2d, Vim
from .vim_mixer import wide
from .vim_patches import ChannelPatchEmbed
from .vim_pools import pooled_logits

SCAN_ORDERS = ("channel-first", "spatial-first")


class ChannelTokens(Vim):
    """Maps images [B, C', H, W] with any C' <= C channels to logits [B, num_classes].

    Args of the constructor beyond those of the network:
        hcs: hierarchical channel sampling in training: each batch keeps a random number of random channels.
        sort_channels: those in rising order, else in random order.
        scan_order: "Channel-First", where the channels of a patch follow one another, or "Spatial-First".
    """

    patch_embedding = ChannelPatchEmbed
    embeds_class_tokens = False

    def __init__(
        self,
        *args: Any,
        hcs: bool = False,
        sort_channels: bool = False,
        scan_order: str = "Channel-First",
        **kwargs: Any,
    ) -> None:
        if kwargs.get("if_rope"):
            raise UserError("if_rope: the tokens of channels have no rotation; leave it out")
        self.hcs = hcs
        self.sort_channels = sort_channels
        self.scan_order = find("scan_order", scan_order, SCAN_ORDERS)
        super().__init__(*args, **kwargs)

    def _sampled(self, x: Tensor, names: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Some of the channels of a batch in training, all of them in evaluation, and their numbers."""
        if not (self.hcs and self.training):
            return x, names
        given = x.shape[1]
        taken = torch.randperm(given)[: int(torch.randint(1, given + 1, ()))].to(x.device)
        taken = taken.sort().values if self.sort_channels else taken
        return x[:, taken], taken if names is None else names[taken]

    def _embedded(  # type: ignore[override]
        self, x: Tensor, names: Tensor | None = None
    ) -> tuple[Tensor, Sequence2d]:
        """The tokens [B, L, D], and what is known of their sequence, whose grid has the channels as its third axis."""
        if x.dim() != 4 or not 1 <= x.shape[1] <= self.in_chans:
            raise ValueError(f"x: expected images [B, 1 to {self.in_chans} channels, H, W], got {tuple(x.shape)}")
        x, names = self._sampled(x, names)
        patches = self.patch_embed(x, names)  # [B, C', h, w, D]
        patches = patches.transpose(2, 3) if self.scans_columns else patches
        height, width = patches.shape[2:4]
        if self.pos_embed is not None:
            pos: Tensor = self.pos_embed
            if torch.compiler.is_compiling() or (height, width) != self.grid:
                pos = self._resized(pos, self.grid, (height, width))
            patches = patches + pos.unflatten(1, (height, width))
        if self.scan_order == "channel-first":
            patches = patches.permute(0, 2, 3, 1, 4)
        grid, x = tuple(patches.shape[1:4]), patches.flatten(1, 3)
        places = class_token_places(self.class_token, x.shape[1])
        x = insert_tokens(x, self._class_tokens(), places)
        return self.pos_drop(wide(x) if self.residual_in_fp32 else x), Sequence2d(grid, places)

    def forward(self, x: Tensor, input_channel_order: Sequence[int] | Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Logits; `input_channel_order` names the channels of x among those that are built for, else the first ones."""
        names = None if input_channel_order is None else self._named(x, input_channel_order)
        tokens, sequence = self._embedded(x, names)
        for stage in self._stream(tokens, sequence):
            tokens = stage
        return pooled_logits(self._normed(tokens), sequence.places, self.global_pool, self.head)

    def _named(self, x: Tensor, order: Sequence[int] | Tensor) -> Tensor:
        """The numbers [C'] of the channels of x, on its device.

        A tensor on another device than the CPU has its numbers unseen: to look would wait for the device.
        """
        names = order if isinstance(order, Tensor) else torch.as_tensor(order, device="cpu")
        if names.shape != x.shape[1:2]:
            raise ValueError(f"input_channel_order: expected {x.shape[1]} numbers, got {tuple(names.shape)}")
        known = f"channels from 0 to {self.in_chans - 1}"
        if names.dtype is torch.bool:
            raise UserError(f"input_channel_order: expected {known}, got a mask; give the numbers of the channels")
        seen = names.device.type == "cpu" and not torch.compiler.is_compiling()
        if seen and not set(names.tolist()) <= set(range(self.in_chans)):
            raise UserError(f"input_channel_order: expected {known}, got {names.tolist()}")
        return names.to(x.device, torch.long)

    def _map(self, x: Tensor, sequence: Sequence2d, layout: str) -> Tensor:
        """The mean over the channels of the tokens of each patch, as a map."""
        x = without_tokens(x, sequence.places).unflatten(1, sequence.grid)
        x = x.mean(3 if self.scan_order == "channel-first" else 1)  # [B, h, w, D]
        x = x.transpose(1, 2) if self.scans_columns else x
        return (x.permute(0, 3, 1, 2) if layout == "NCHW" else x).contiguous()


class FastChannelVim(ChannelTokens, FastVim):
    """FastVim on the tokens of channels: the tokens of a row of patches are pooled for each channel by itself.

    The arguments are those of `FastVim` and `ChannelTokens`.
    """

    def __init__(self, *args: Any, rotate_every_block: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, rotate_every_block=False, **kwargs)
        channel_first = self.scan_order == "channel-first"
        block: Any
        for number, block in enumerate(self.layers):
            block.mixer.pooled_axes = 1 if channel_first else 2
            if rotate_every_block and number % 2:
                block.swaps = (0, 1) if channel_first else (1, 2)


class FastChannelVim2d(FastChannelVim):
    """FastChannelVim that pools two axes: blocks in turn scan rows, columns and channels, the others pooled."""

    def __init__(self, *args: Any, rotate_every_block: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, rotate_every_block=False, **kwargs)
        if self.scan_order != "channel-first":
            raise UserError(f"scan_order: FastChannelVim2d scans Channel-First, got {self.scan_order!r}")
        block: Any
        for number, block in enumerate(self.layers):
            block.mixer.pooled_axes = (0, 1) if number % 3 == 2 else (1, 2)
            if rotate_every_block and number % 3 == 1:
                block.swaps = (0, 1)


class ChannelVim(ChannelTokens, VimLN):
    """Vim with LayerNorm on the tokens of channels, with a class token in their middle that has no position."""
