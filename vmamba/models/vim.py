"""Vim (Vision Mamba): a plain stack of bidirectional scans over the patches of an image, with a class token among them.

Source: Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model", ICML
2024; code github.com/hustvl/Vim (Apache-2.0). The keys are the published ones. Different from it: one stream of tokens
instead of a hidden state and its residual, which are only ever added; any input size; unknown arguments are refused;
and timm's interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import UserError
from .argument_checks import check_int, pair
from .class_tokens import (
    CLASS_TOKENS,
    class_token_kind,
    class_token_places,
    insert_tokens,
    resize_token_embed,
    without_tokens,
)
from .layers import LayerNorm, find
from .network import Network, Shapes
from .rope import Rope, Rotation, rotated
from .vim_block import Block, Grid, RMSNorm, swap_axes
from .vim_checks import check_vim_arguments, refuse_unknown
from .vim_keys import read_vim_keys
from .vim_mixer import VimMixer, wide
from .vim_patches import PatchEmbed
from .vim_pools import POOLS, pool_name, pooled_logits

CLASS_TOKEN_NAMES: dict[str, tuple[str, ...]] = {
    "none": (),
    "head": ("cls_token",),
    "middle": ("cls_token",),
    "double": ("cls_token_head", "cls_token_tail"),
}
ImageGrid = tuple[int, int]


@dataclass(frozen=True)
class Sequence2d:
    """What is known of a sequence of tokens: its grid, the places of its class tokens, and its rotation if it has one.

    `order` is the place that each token had before the sequence was shuffled or reversed, None where it was not.
    """

    grid: Grid
    places: tuple[int, ...]
    rotation: Rotation | None = None
    order: Tensor | None = None


class Vim(Network):
    """Maps images [B, channels, H, W] of any size to logits [B, num_classes].

    The arguments up to `use_middle_cls_token` are the published ones; `docs/vim_fastvim.md` tells each. Beyond them:
    `in_chans` is timm's word for `channels`; `global_pool` overrides where the features come from ("token", "avg",
    "max", "last" or "" for all tokens); `legacy_resize` resizes position embeddings as published, which takes the first
    row for the class token's wherever it stands; `stride` None is `patch_size`. `initializer_cfg` and `ssm_cfg` are
    dicts of arguments. `if_devide_out`, as some published code has it, means `if_divide_out`.

    Raises: TypeError for an unknown argument, ValueError for a bad value, both with the nearest known name.
    """

    pads_images = False
    scans_columns = False
    patch_embedding: type[PatchEmbed] = PatchEmbed
    # Whether the position embedding has rows for the class tokens.
    embeds_class_tokens = True

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        depth: int = 24,
        embed_dim: int = 192,
        d_state: int = 16,
        channels: int = 3,
        num_classes: int = 1000,
        ssm_cfg: Mapping[str, Any] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = True,
        initializer_cfg: Mapping[str, Any] | None = None,
        fused_add_norm: bool = True,
        residual_in_fp32: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        ft_seq_len: int | None = None,
        pt_hw_seq_len: int = 14,
        if_bidirectional: bool = False,
        final_pool_type: str = "none",
        if_abs_pos_embed: bool = True,
        if_rope: bool = False,
        if_rope_residual: bool = False,
        flip_img_sequences_ratio: float = -1.0,
        if_bimamba: bool = False,
        bimamba_type: str = "v2",
        if_cls_token: bool = True,
        if_divide_out: bool = True,
        init_layer_scale: float | None = None,
        use_double_cls_token: bool = False,
        use_middle_cls_token: bool = True,
        *,
        in_chans: int | None = None,
        global_pool: str | None = None,
        legacy_resize: bool = False,
        _mixer: Callable[..., VimMixer] = VimMixer,
        **unknown: Any,
    ) -> None:
        if_divide_out = unknown.pop("if_devide_out", if_divide_out)
        refuse_unknown(type(self), unknown)
        stride = patch_size if stride is None else stride
        check_vim_arguments(
            counts=dict(
                patch_size=patch_size,
                stride=stride,
                depth=depth,
                embed_dim=embed_dim,
                **({"channels": channels} if in_chans is None else {"in_chans": in_chans}),
            ),
            rates=dict(drop_rate=drop_rate, drop_path_rate=drop_path_rate),
            norm_epsilon=norm_epsilon,
            ssm_cfg=ssm_cfg,
            initializer_cfg=initializer_cfg,
            pairs=if_bidirectional,
        )
        check_int("num_classes", num_classes, least=0)
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = channels if in_chans is None else in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.output_fmt = "NLC"
        self.img_size = pair("img_size", img_size)
        self.class_token = class_token_kind(if_cls_token, use_double_cls_token, use_middle_cls_token)
        self.global_pool = pool_name(global_pool, final_pool_type, self.class_token)
        self.residual_in_fp32 = residual_in_fp32
        self.if_bidirectional = if_bidirectional
        self.if_rope_residual = if_rope_residual
        self.flip_img_sequences_ratio = flip_img_sequences_ratio
        self.legacy_resize = legacy_resize
        self.initializer_cfg = dict(initializer_cfg or {})

        for name in CLASS_TOKEN_NAMES[self.class_token]:
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, embed_dim, **dd)))
        patches = self.patch_embedding(self.in_chans, embed_dim, patch_size, stride, self.pads_images, **dd)
        grid = self._oriented(patches.grid(self.img_size))
        rows = grid[0] * grid[1] + CLASS_TOKENS[self.embedded_token]
        self.pos_embed: nn.Parameter | None = None
        if if_abs_pos_embed:
            self.pos_embed = nn.Parameter(torch.empty(1, rows, embed_dim, **dd))
        self.patch_embed = patches
        self.pos_drop = nn.Dropout(drop_rate)
        self.rope = Rope(embed_dim, grid, pt_hw_seq_len, device=device) if if_rope else None
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes > 0 else nn.Identity()
        norm = partial(RMSNorm if rms_norm else LayerNorm, eps=norm_epsilon)
        mixer = partial(
            _mixer,
            **{"d_state": d_state, **(ssm_cfg or {})},
            bimamba_type="v1" if if_bimamba else bimamba_type,
            if_divide_out=if_divide_out,
            init_layer_scale=init_layer_scale,
            **dd,
        )
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(Block(embed_dim, mixer(embed_dim), norm, rate, **dd) for rate in rates)
        self.norm_f: nn.Module = norm(embed_dim, **dd)
        self.feature_info = [dict(num_chs=embed_dim, reduction=stride, module=f"layers.{i}") for i in range(depth)]
        self.init_weights(needs_reset=False)

    @torch.no_grad()
    def init_weights(self, needs_reset: bool = True) -> None:
        """Draw every parameter anew in place, for instance after meta-device construction and `to_empty`."""
        if needs_reset:
            self._reset_layers()
        if needs_reset and self.rope is not None:
            self.rope.set_grid(self.rope.grid, self.patch_embed.proj.weight.device)
        self.patch_embed.init_weights()
        self._init_head()
        for token in (*self._class_tokens(), *([] if self.pos_embed is None else [self.pos_embed])):
            trunc_normal_(token, std=0.02)
        scale = (self.initializer_cfg.get("n_residuals_per_layer", 1) * len(self.layers)) ** 0.5
        for module in self.modules():
            if isinstance(module, VimMixer):
                module.init_weights(scale if self.initializer_cfg.get("rescale_prenorm_residual", True) else 1.0)

    def _init_head(self) -> None:
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def _class_tokens(self) -> list[Tensor]:
        return [getattr(self, name) for name in CLASS_TOKEN_NAMES[self.class_token]]

    # sizes

    @property
    def trained_class_token(self) -> str:
        """The kind of class token of the classifier whose weights are loaded; a dense backbone has none itself."""
        return self.class_token

    @property
    def embedded_token(self) -> str:
        """The kind of class token that the position embedding has rows for."""
        return self.class_token if self.embeds_class_tokens else "none"

    def _oriented(self, grid: ImageGrid) -> ImageGrid:
        """The grid of the sequence: lines and tokens a line."""
        return (grid[1], grid[0]) if self.scans_columns else grid

    @property
    def grid(self) -> ImageGrid:
        """The grid of the sequence at `img_size`."""
        return self._oriented(self.patch_embed.grid(self.img_size))

    def stage_sizes(self, n: int) -> list[int]:
        """[the height of the maps for an image of height `n`, or the width for a width]; [0] if there is none."""
        return [self.patch_embed.side(n)]

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        """Resize the position embedding, where there is one, to another image size. The patch size cannot change."""
        if patch_size is not None and patch_size != self.patch_embed.patch_size:
            raise UserError(
                f"patch_size: fixed at {self.patch_embed.patch_size}, got {patch_size}; build another model"
            )
        if img_size is None:
            return
        old, self.img_size = self.grid, pair("img_size", img_size)
        if self.pos_embed is not None:
            with torch.no_grad():
                resized = self._resized(self.pos_embed, old, self.grid)
            self.pos_embed = nn.Parameter(resized, self.pos_embed.requires_grad)
        if self.rope is not None:
            self.rope.set_grid(self.grid, self.rope.freqs_cos.device)

    def _resized(self, pos_embed: Tensor, old: ImageGrid, new: ImageGrid) -> Tensor:
        return resize_token_embed(pos_embed, old, new, self.embedded_token, self.legacy_resize)

    def resized_embed(self, pos_embed: Tensor, old: ImageGrid) -> Tensor:
        """A position embedding of the grid `old`, class tokens' rows among its own, as one of this model's grid."""
        return self._resized(pos_embed, old, self.grid)

    # forward

    def _embedded(self, x: Tensor, random_place: bool = False, random_rank: bool = False) -> tuple[Tensor, Sequence2d]:
        """The tokens [B, L, D] of images, class tokens among them, and what is known of their sequence."""
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"x: expected images [B, {self.in_chans}, H, W], got {tuple(x.shape)}")
        patches = self.patch_embed(x)  # [B, h, w, D]
        if self.scans_columns:
            patches = patches.transpose(1, 2)
        height, width = patches.shape[1:3]
        x = patches.flatten(1, 2)
        places = class_token_places(self.class_token, height * width)
        if random_place and self.class_token == "head":
            places = (int(torch.randint(height * width + 1, ())),)
        x = insert_tokens(x, self._class_tokens(), places)
        if self.pos_embed is not None:
            pos: Tensor = self.pos_embed
            if torch.compiler.is_compiling() or (height, width) != self.grid:
                pos = self._resized(pos, self.grid, (height, width))
            x = x + pos
        x = self.pos_drop(wide(x) if self.residual_in_fp32 else x)
        sequence = Sequence2d((height, width), places, self._rotation((height, width), places))
        if random_rank:
            x, sequence = _reordered(x, sequence, torch.randperm(x.shape[1], device=x.device))
        if self.flip_img_sequences_ratio > 0 and float(torch.rand(())) < self.flip_img_sequences_ratio:
            x, sequence = _reordered(x, sequence, torch.arange(x.shape[1] - 1, -1, -1, device=x.device))
        return x, sequence

    def _rotation(self, grid: ImageGrid, places: tuple[int, ...]) -> Rotation | None:
        """The rotation of every token, if any; class tokens do not turn."""
        if self.rope is None:
            return None
        cos, sin = self.rope(grid)
        ones, zeros = (value.expand(1, 1, cos.shape[1]) for value in (cos.new_ones(()), cos.new_zeros(())))
        cos = insert_tokens(cos[None], [ones] * len(places), places)[0]
        return cos, insert_tokens(sin[None], [zeros] * len(places), places)[0]

    def _stream(self, x: Tensor, sequence: Sequence2d, blocks: int | None = None) -> Iterator[Tensor]:
        """The tokens after each of the first `blocks` blocks; after both of a pair that see them in opposite orders."""
        layers: list[Any] = list(self.layers)[:blocks]
        grid, rotation = sequence.grid, sequence.rotation
        if rotation is not None and not self.if_rope_residual:
            x = rotated(x, rotation)
        step = 2 if self.if_bidirectional else 1
        for i in range(0, len(layers), step):
            branch = None
            if rotation is not None and self.if_rope_residual:
                x = rotated(x, rotation)
            elif rotation is not None and i + step < len(self.layers):
                branch = rotation
            if step == 1:
                x = layers[i](x, grid, branch)
            else:
                mirrored = None if branch is None else (branch[0].flip(0), branch[1].flip(0))
                x = layers[i](x, grid, branch) + layers[i + 1](x.flip(1), grid, mirrored).flip(1)
                yield x
            yield x

    def _normed(self, x: Tensor) -> Tensor:
        return self.norm_f(x).to(self.patch_embed.proj.weight.dtype)

    def _encoded(self, x: Tensor, *random: bool) -> tuple[Tensor, Sequence2d]:
        """The normed tokens after the last block, and their sequence."""
        x, sequence = self._embedded(x, *random)
        for stage in self._stream(x, sequence):
            x = stage
        return self._normed(x), sequence

    def forward_features(self, x: Tensor) -> Tensor:
        """The normed tokens [B, L, D] after the last block, class tokens at their places."""
        return self._encoded(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (or, with `pre_logits`, pooled features) from the output of `forward_features`."""
        places = class_token_places(self.class_token, x.shape[1] - CLASS_TOKENS[self.class_token])
        return pooled_logits(x, places, self.global_pool, nn.Identity() if pre_logits else self.head)

    def forward(
        self,
        x: Tensor,
        return_features: bool = False,
        if_random_cls_token_position: bool = False,
        if_random_token_rank: bool = False,
    ) -> Tensor:
        """Logits [B, num_classes], or with `return_features` what the head would be given.

        `if_random_cls_token_position` puts a class token that is built for the head at a random place, and
        `if_random_token_rank` shuffles all tokens, the same way for the whole batch; both as published for training.
        """
        x, sequence = self._encoded(x, if_random_cls_token_position, if_random_token_rank)
        head = nn.Identity() if return_features else self.head
        return pooled_logits(x, sequence.places, self.global_pool, head)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """(forward_features(x), maps after the blocks `indices`), or the maps only; class tokens are left out of maps.

        Args:
            indices: blocks, an int for the last n, None for all. norm: apply the final norm to the maps.
            stop_early: leave out blocks after the last index (only with `intermediates_only`).
            output_fmt: "NCHW" or "NHWC".
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt: expected 'NCHW' or 'NHWC', got {output_fmt!r}")
        taken, final = feature_take_indices(len(self.layers), indices)
        x, sequence = self._embedded(x)
        maps = []
        blocks = self._last_block(final) + 1 if stop_early and intermediates_only else None
        for i, stage in enumerate(self._stream(x, sequence, blocks)):
            x = stage
            if i in taken:
                maps.append(self._map(self._normed(x) if norm else x, sequence, output_fmt))
        return maps if intermediates_only else (self._normed(x), maps)

    def _last_block(self, block: int) -> int:
        """The last block that the output of `block` needs: the second of its pair."""
        return block | 1 if self.if_bidirectional else block

    def _map(self, x: Tensor, sequence: Sequence2d, layout: str) -> Tensor:
        """The tokens of the image as a map, in the image's orientation."""
        if sequence.order is not None:
            x = x[:, sequence.order.argsort()]
        places = sequence.places
        if sequence.order is not None:
            places = tuple(sorted(int(sequence.order[place]) for place in places))
        x = without_tokens(x, places)
        grid = sequence.grid
        if self.scans_columns:
            x, grid = swap_axes(x, grid)
        x = x.unflatten(1, grid)
        return (x.permute(0, 3, 1, 2) if layout == "NCHW" else x).contiguous()

    # timm's interface

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last of `indices`, and norm and head if asked; return the indices."""
        taken, final = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: self._last_block(final) + 1]
        if prune_norm:
            self.norm_f = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The linear head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes` (0: none) and, if given, another pooling ("token", "avg", "max", "last", "")."""
        if global_pool is not None:
            self.global_pool = pool_name(find("global_pool", global_pool, POOLS), "", self.class_token)
        self.num_classes = num_classes
        like = self.patch_embed.proj.weight
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            self._init_head()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order the parameters from input to output; the final norm goes with the head."""
        return dict(stem=r"^cls_token|^pos_embed|^patch_embed", blocks=[(r"^layers\.(\d+)", None)])

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay, as published."""
        return {"pos_embed", "cls_token", "cls_token_head", "cls_token_tail", "dist_token"}

    def read_published_keys(
        self, state_dict: Mapping[str, Tensor], prefix: str = ""
    ) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Shapes]]:
        """The weights as this model's, {old name: new name}, and {key: (old, new shape)} of what was resized.

        See `vim_keys.read_vim_keys`.
        """
        return read_vim_keys(self, state_dict, prefix)


def _reordered(x: Tensor, sequence: Sequence2d, order: Tensor) -> tuple[Tensor, Sequence2d]:
    """The tokens x[:, order], and what is known of them."""
    places = tuple(sorted(int(torch.nonzero(order == place)) for place in sequence.places))
    rotation = sequence.rotation and (sequence.rotation[0][order], sequence.rotation[1][order])
    before = order if sequence.order is None else sequence.order[order]
    return x[:, order], Sequence2d(sequence.grid, places, rotation, before)
