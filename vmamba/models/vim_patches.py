"""The patch embeddings of Vim, FastVim and their models of many channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import lecun_normal_
from torch import Tensor, nn

from ..errors import UserError
from .layers import channels_last


class PatchEmbed(nn.Module):
    """Maps images [B, C, H, W] to patches [B, h, w, D], of `patch_size`, one every `stride` pixels.

    What is left over at the bottom and at the right is dropped, or with `pads` filled up with zeros.
    """

    def __init__(
        self, in_chans: int, embed_dim: int, patch_size: int, stride: int, pads: bool = False, **dd: Any
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.stride = stride
        self.pads = pads
        self.proj: Any = self._make_projection(in_chans, embed_dim, **dd)

    def _make_projection(self, in_chans: int, embed_dim: int, **dd: Any) -> nn.Module:
        return nn.Conv2d(in_chans, embed_dim, self.patch_size, self.stride, **dd)

    def init_weights(self) -> None:
        """Draw the weights as published: LeCun's normal, bias 0."""
        lecun_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def side(self, pixels: int) -> int:
        """The number of patches along a side of so many pixels; 0 if there is none."""
        steps = pixels - self.patch_size
        if self.pads:
            return max(-(-steps // self.stride), 0) + 1 if pixels > 0 else 0
        return max(steps // self.stride + 1, 0)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of images of a size (H, W); UserError if they are smaller than a patch."""
        if min(self.side(pixels) for pixels in size) < 1:
            raise UserError(f"img_size: expected at least patch_size {self.patch_size}, got {size}")
        return self.side(size[0]), self.side(size[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(channels_last(self._padded(x))).permute(0, 2, 3, 1)

    def _padded(self, x: Tensor) -> Tensor:
        compiling = torch.compiler.is_compiling()
        least = 1 if self.pads else self.patch_size
        if not compiling and min(x.shape[2:]) < least:
            raise ValueError(f"x: expected images of at least {least} pixels a side, got {tuple(x.shape)}")
        if self.pads:
            right, bottom = self._missing(x.shape[3]), self._missing(x.shape[2])
            return F.pad(x, (0, right, 0, bottom)) if compiling or right or bottom else x
        return x

    def _missing(self, pixels: int) -> int:
        """How many pixels to add for a whole number of steps; in a graph the most there may be, and the rest drops."""
        if torch.compiler.is_compiling():
            return self.stride - 1
        if pixels >= self.patch_size:
            return -(pixels - self.patch_size) % self.stride
        return self.patch_size - pixels


class ChannelPatchEmbed(PatchEmbed):
    """Maps images [B, C', H, W] to patches [B, C', h, w, D] of each channel, with the channel's embedding.

    One projection serves every channel. The channels are the first C' <= C of those that are built for, or those that
    are named.
    """

    def _make_projection(self, in_chans: int, embed_dim: int, **dd: Any) -> nn.Module:
        return nn.Conv3d(1, embed_dim, (1, self.patch_size, self.patch_size), (1, self.stride, self.stride), **dd)

    def __init__(
        self, in_chans: int, embed_dim: int, patch_size: int, stride: int, pads: bool = False, **dd: Any
    ) -> None:
        super().__init__(in_chans, embed_dim, patch_size, stride, pads, **dd)
        self.channel_embed = nn.Embedding(in_chans, embed_dim, **dd)

    def init_weights(self) -> None:
        """Draw the weights as published: PyTorch's own for the projection, normal of deviation 0.02 for channels."""
        self.proj.reset_parameters()
        nn.init.normal_(self.channel_embed.weight, std=0.02)

    def forward(self, x: Tensor, channels: Tensor | None = None) -> Tensor:
        names = self.channel_embed.weight[: x.shape[1]] if channels is None else self.channel_embed(channels)
        return self.proj(self._padded(x)[:, None]).permute(0, 2, 3, 4, 1) + names[:, None, None]
