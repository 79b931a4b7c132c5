"""Masked autoencoders: FastMaskVim, which learns FastVim's weights, and Vim's.

B batch, L patches, n kept ones, p patch size, C channels.
Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022; Kapse et al., "Fast Vision Mamba", 2025
(arXiv 2502.00594). The keys are the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .argument_checks import check_rate, pair
from .class_tokens import class_token_places, insert_tokens, without_tokens
from .layers import LayerNorm, find
from .masked_mixer import KeptTokens, MaskedBlock, MaskedFastVimMixer
from .network import Network
from .sincos import sincos_table
from .vim_block import Block, RMSNorm, swap_axes
from .vim_checks import check_vim_arguments, refuse_unknown
from .vim_mixer import VimMixer, wide
from .vim_patches import PatchEmbed


class MaskedAutoencoder(Network):
    """Maps images [B, C, H, W] to (loss, predicted patches [B, L, p*p*C], mask [B, L]); 1 in the mask: hidden.

    The encoder sees the kept patches alone; the decoder sees them among mask tokens, and tells the pixels of each
    patch, channels last. The loss is the mean squared error over the hidden patches, with `norm_pix_loss` of pixels
    normed within their patch. `mask_ratio` is the hidden part. As published, tokens that a "colwise" scan has in column
    order are compared with the patches in row order; with `aligned_targets` each is compared with its own. The other
    arguments are those of `Vim`; images have the one size that is built for.
    """

    class_token = "none"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        depth: int = 24,
        embed_dim: int = 768,
        channels: int = 3,
        ssm_cfg: Mapping[str, Any] | None = None,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        norm_pix_loss: bool = True,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = True,
        fused_add_norm: bool = True,
        residual_in_fp32: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        mask_ratio: float = 0.75,
        aligned_targets: bool = False,
        scanpath_type: str = "rowwise",
        use_norm_after_ssm: bool = True,
        init_layer_scale: float | None = None,
        in_chans: int | None = None,
        num_classes: int = 0,
        **unknown: Any,
    ) -> None:
        refuse_unknown(type(self), unknown)
        check_vim_arguments(
            counts=dict(
                patch_size=patch_size,
                depth=depth,
                embed_dim=embed_dim,
                decoder_embed_dim=decoder_embed_dim,
                decoder_depth=decoder_depth,
                **({"channels": channels} if in_chans is None else {"in_chans": in_chans}),
            ),
            rates=dict(mask_ratio=mask_ratio),
            norm_epsilon=norm_epsilon,
            ssm_cfg=ssm_cfg,
            initializer_cfg=None,
            pairs=False,
        )
        for name, width in (("embed_dim", embed_dim), ("decoder_embed_dim", decoder_embed_dim)):
            if width % 4:
                raise UserError(f"{name}: a table of sines and cosines needs a multiple of 4, got {width}")
        if num_classes:
            raise UserError(f"num_classes: an autoencoder has no classes, got {num_classes}; use FastVim or VimLN")
        if stride not in (None, patch_size):
            raise UserError(f"stride: patches must not overlap, so it is patch_size {patch_size}, got {stride}")
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans = channels if in_chans is None else in_chans
        self.img_size = pair("img_size", img_size)
        self.patch_size = patch_size
        self.num_classes, self.num_features, self.embed_dim = 0, embed_dim, embed_dim
        self.decoder_embed_dim = decoder_embed_dim
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.aligned_targets = aligned_targets
        self.residual_in_fp32 = residual_in_fp32
        self.scans_columns = find("scanpath_type", scanpath_type, ("rowwise", "colwise")) == "colwise"
        patches = PatchEmbed(self.in_chans, embed_dim, patch_size, patch_size, **dd)
        if any(side % patch_size for side in self.img_size):
            raise UserError(f"img_size: expected multiples of patch_size {patch_size}, got {self.img_size}")
        self.image_grid = patches.grid(self.img_size)
        height, width = self.image_grid
        self.grid = (width, height) if self.scans_columns else (height, width)
        self.class_rows = int(self.class_token != "none")

        if self.class_rows:
            self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd))
        rows = self.grid[0] * self.grid[1] + self.class_rows
        self.pos_embed = nn.Parameter(torch.empty(1, rows, embed_dim, **dd), requires_grad=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_embed_dim, **dd))
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, rows, decoder_embed_dim, **dd), requires_grad=False)
        self.patch_embed = patches
        norm = partial(RMSNorm if rms_norm else LayerNorm, eps=norm_epsilon)
        mixing: dict[str, Any] = dict(norm_after_scan=use_norm_after_ssm, init_layer_scale=init_layer_scale, **dd)
        mixing |= ssm_cfg or {}
        self.layers = nn.ModuleList(self._encoder_block(i, embed_dim, norm, mixing, **dd) for i in range(depth))
        self.norm_f = norm(embed_dim, **dd)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim, **dd)
        decoder = [VimMixer(decoder_embed_dim, **mixing) for _ in range(decoder_depth)]
        self.decoder_blocks = nn.ModuleList(Block(decoder_embed_dim, mixer, norm, **dd) for mixer in decoder)
        self.decoder_norm = norm(decoder_embed_dim, **dd)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * self.in_chans, **dd)
        self.init_weights(needs_reset=False)

    def _encoder_block(self, number: int, dim: int, norm: Any, mixing: dict[str, Any], **dd: Any) -> Block:
        """Block `number` of the encoder; `mixing` are the arguments of its mixer."""
        raise NotImplementedError

    @torch.no_grad()
    def init_weights(self, needs_reset: bool = True) -> None:
        """Draw every parameter anew in place and make the position tables."""
        if needs_reset:
            self._reset_layers()
        for table in (self.pos_embed, self.decoder_pos_embed):
            table.copy_(sincos_table(table.shape[2], self.grid, self.class_rows, table.device))
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        if self.patch_embed.proj.bias is not None:
            nn.init.zeros_(self.patch_embed.proj.bias)
        for token in [self.mask_token, self.cls_token] if self.class_rows else [self.mask_token]:
            nn.init.trunc_normal_(token, std=0.02)
        for linear in (self.decoder_embed, self.decoder_pred):
            nn.init.zeros_(linear.bias)
        for blocks in (self.layers, self.decoder_blocks):
            block: Any
            for block in blocks:
                block.mixer.init_weights(len(blocks) ** 0.5)

    # patches

    def patchify(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] as patches [B, L, p*p*C], row by row, channels last."""
        h, w = self.image_grid
        cut = images.unflatten(3, (w, self.patch_size)).unflatten(2, (h, self.patch_size))  # [B, C, h, p, w, p]
        return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Patches [B, L, p*p*C] as images [B, C, H, W]."""
        parts = patches.unflatten(2, (self.patch_size, self.patch_size, self.in_chans)).unflatten(1, self.image_grid)
        return parts.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def targets(self, images: Tensor) -> Tensor:
        """[B, L, p*p*C]: what the patches are to be predicted as, in the order in which the loss compares them."""
        target = self.patchify(images)
        if self.scans_columns and self.aligned_targets:
            target = swap_axes(target, self.image_grid)[0]
        if self.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=2, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return target

    def pictures(self, images: Tensor, predicted: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What the network was given of images [B, C, H, W], the rest 0, and its answer in the hidden places.

        `predicted` and `mask` are those of `forward`. With `norm_pix_loss` each predicted patch takes the mean and
        deviation of the true one, which it does not tell.
        """
        target = self.patchify(images)
        if self.scans_columns:
            mask = swap_axes(mask[:, :, None], self.grid)[0][:, :, 0]
            predicted = swap_axes(predicted, self.grid)[0] if self.aligned_targets else predicted
        if self.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=2, keepdim=True)
            predicted = predicted * (variance + 1e-6).sqrt() + mean
        hidden = mask[:, :, None]
        given = target * (1 - hidden)
        return self.unpatchify(given), self.unpatchify(given + predicted * hidden)

    # forward

    def _embedded(self, x: Tensor) -> Tensor:
        """The patches [B, L, D] in the order of the scan, with their positions."""
        if x.dim() != 4 or (x.shape[1], *x.shape[2:]) != (self.in_chans, *self.img_size):
            size = ", ".join(map(str, self.img_size))
            raise UserError(f"x: built for images [B, {self.in_chans}, {size}] (img_size), got {tuple(x.shape)}")
        patches = self.patch_embed(x)
        patches = patches.transpose(1, 2) if self.scans_columns else patches
        x = patches.flatten(1, 2) + self.pos_embed[:, self.class_rows :]
        return wide(x) if self.residual_in_fp32 else x

    def encode(self, x: Tensor, noise: Tensor | None = None, mask_ratio: float | None = None) -> tuple[Tensor, Tensor]:
        """The normed kept tokens [B, n (+ 1), D], a class token in their middle, and their places [B, n], rising.

        Patches with the least `noise` [B, L] are kept, n = int(L * (1 - mask_ratio)); None draws it.
        """
        x = self._embedded(x)
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        check_rate("mask_ratio", ratio)
        if noise is None:
            noise = torch.rand(x.shape[:2], device=x.device)
        if noise.shape != x.shape[:2]:
            raise ValueError(f"noise: expected {tuple(x.shape[:2])}, one number a patch, got {tuple(noise.shape)}")
        kept_patches = int(x.shape[1] * (1 - ratio))
        if kept_patches < 1:
            raise UserError(f"mask_ratio: {ratio} keeps none of {x.shape[1]} patches; lower it")
        places = noise.argsort(1)[:, :kept_patches].sort(1).values
        x = x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))
        if self.class_rows:
            token = self.cls_token + self.pos_embed[:, :1]
            x = insert_tokens(x, [token], class_token_places(self.class_token, x.shape[1]))
        kept = KeptTokens(*self.grid, places)
        for block in self.layers:
            x = block(x, kept)
        return self.norm_f(x).to(self.decoder_embed.weight.dtype), places

    def decode(self, x: Tensor, places: Tensor) -> Tensor:
        """The predicted patches [B, L, p*p*C] from what `encode` gives."""
        x = self.decoder_embed(x)
        token = None
        if self.class_rows:
            middle = class_token_places(self.class_token, x.shape[1] - 1)
            token, x = x[:, middle[0] : middle[0] + 1], without_tokens(x, middle)
        hidden = self.mask_token.to(x.dtype).expand(x.shape[0], self.grid[0] * self.grid[1], -1)
        x = hidden.scatter(1, places[:, :, None].expand_as(x), x) + self.decoder_pos_embed[:, self.class_rows :]
        if token is not None:
            x = torch.cat([x, token + self.decoder_pos_embed[:, :1]], 1)
        x = wide(x) if self.residual_in_fp32 else x
        for block in self.decoder_blocks:
            x = block(x, self.grid)
        x = self.decoder_pred(self.decoder_norm(x).to(self.decoder_pred.weight.dtype))
        return x[:, :-1] if self.class_rows else x

    def loss(self, images: Tensor, predicted: Tensor, mask: Tensor) -> Tensor:
        """The mean squared error over the hidden patches."""
        errors = (predicted - self.targets(images)).square().mean(2)
        return (errors * mask).sum() / mask.sum()

    def forward(
        self, x: Tensor, noise: Tensor | None = None, mask_ratio: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept, places = self.encode(x, noise, mask_ratio)
        patches = self.grid[0] * self.grid[1]
        if places.shape[1] == patches:
            raise UserError(f"mask_ratio: it hides none of {patches} patches, and the loss is of hidden ones; raise it")
        predicted = self.decode(kept, places)
        # in a half type the number of hidden patches of a batch is rounded, and above 65,504 infinite
        mask = wide(predicted.new_ones(predicted.shape[:2])).scatter(1, places, 0.0)
        return self.loss(x, predicted, mask), predicted, mask

    # timm's interface

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order the parameters from input to output; what follows the encoder is one group, the last."""
        return dict(stem=r"^cls_token|^pos_embed|^patch_embed", blocks=[(r"^layers\.(\d+)", None)])

    def no_weight_decay(self) -> set[str]:
        """Nothing: as published, all parameters are decayed in pre-training."""
        return set()


class FastMaskVim(MaskedAutoencoder):
    """The masked autoencoder whose encoder is FastVim's, on the kept tokens of each row, in odd blocks of each column.

    `rotate_every_block`, `scaling_factor` as for `FastVim`; `mirror_ids` as for `MaskedFastVimMixer`.
    """

    def __init__(
        self,
        *args: Any,
        rotate_every_block: bool = True,
        scaling_factor: float = 1.0,
        mirror_ids: bool = False,
        **kwargs: Any,
    ) -> None:
        self.rotates = rotate_every_block
        self.pooling: dict[str, Any] = dict(scaling_factor=scaling_factor, mirror_ids=mirror_ids)
        super().__init__(*args, **kwargs)

    def _encoder_block(self, number: int, dim: int, norm: Any, mixing: dict[str, Any], **dd: Any) -> Block:
        block = MaskedBlock(dim, MaskedFastVimMixer(dim, **self.pooling, **mixing), norm, **dd)
        block.swaps = (0, 1) if self.rotates and number % 2 else None
        return block


class VimMAE(MaskedAutoencoder):
    """The masked autoencoder of Vim with LayerNorm; its class token is in the middle, and last in the decoder."""

    class_token = "middle"

    def _encoder_block(self, number: int, dim: int, norm: Any, mixing: dict[str, Any], **dd: Any) -> Block:
        return Block(dim, VimMixer(dim, **mixing), norm, **dd)
