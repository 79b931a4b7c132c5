"""VMamba, the visual state space model: classifier (VSSM) and backbone for dense prediction (Backbone).

Source: Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024; code github.com/MzeroMiko/VMamba (MIT).
Different from it: one token mixer with named options, any input size, unknown arguments refused, and timm's interface.
The keys are the published ones.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.layers import register_notrace_function
from timm.models._features import feature_take_indices
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import Tensor, nn

from ..errors import UserError, closest
from .argument_checks import pair
from .block import VSSBlock
from .classifier import Classifier, init_linear
from .forward_type import ForwardType
from .layers import ACTIVATIONS, NORMS, channels_last, downsample, find, patch_embed
from .network import Network, Shapes
from .ss2d import SS2D
from .vssm_checks import check_vssm_arguments
from .vssm_keys import rename_published_keys, resize_pos_embed


class VSSM(Network):
    """Maps images [B, in_chans, H, W] of any size to logits [B, num_classes].

    The arguments up to `_SS2D` are the published ones; `docs/models.md` tells each. `norm_layer` "ln" makes a
    channel-last model, "ln2d" and "bn" a channel-first one; "ln" and "ln2d" share weights. Beyond the published ones:
    `imgsize` may be (H, W); `global_pool` is "avg", "max" or "" (none); `drop_rate` is a dropout before the head.

    Raises: TypeError for an unknown argument, ValueError for a bad value, both with the nearest known name.
    """

    def __init__(
        self,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (2, 2, 9, 2),
        dims: int | Sequence[int] = (96, 192, 384, 768),
        ssm_d_state: int = 16,
        ssm_ratio: float = 2.0,
        ssm_dt_rank: int | str = "auto",
        ssm_act_layer: str = "silu",
        ssm_conv: int = 3,
        ssm_conv_bias: bool = True,
        ssm_drop_rate: float = 0.0,
        ssm_init: str = "v0",
        forward_type: str | ForwardType = "v05_noz",
        mlp_ratio: float = 4.0,
        mlp_act_layer: str = "gelu",
        mlp_drop_rate: float = 0.0,
        gmlp: bool = False,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        norm_layer: str = "LN",
        downsample_version: str = "v2",
        patchembed_version: str = "v1",
        use_checkpoint: bool = False,
        posembed: bool = False,
        imgsize: int | tuple[int, int] = 224,
        _SS2D: Callable[..., nn.Module] = SS2D,
        *,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **unknown: Any,
    ) -> None:
        _refuse_unknown(unknown)
        check_vssm_arguments(
            depths,
            dims,
            patch_size,
            ssm_d_state,
            ssm_conv,
            drop_path_rate,
            ratios=dict(ssm_ratio=ssm_ratio, mlp_ratio=mlp_ratio),
            names=dict(
                patchembed_version=patchembed_version,
                downsample_version=downsample_version,
                norm_layer=norm_layer,
            ),
        )
        super().__init__()
        dd: dict[str, Any] = {k: v for k, v in (("device", device), ("dtype", dtype)) if v is not None}
        self.depths = list(depths)
        self.dims = [dims * 2**i for i in range(len(self.depths))] if isinstance(dims, int) else list(dims)
        if not self.depths or len(self.dims) != len(self.depths):
            raise UserError(f"dims, depths: one width per stage is needed, got {self.dims} and {self.depths}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self.dims[-1]
        self.patch_size = patch_size
        self.versions = (patchembed_version.lower(), downsample_version.lower())
        norm = find("norm_layer", norm_layer, NORMS)
        self.channel_first = norm_layer.lower() in ("bn", "ln2d")
        self.output_fmt = "NCHW" if self.channel_first else "NHWC"

        stem_norm = norm if patch_norm else None
        self.patch_embed = patch_embed(
            patchembed_version, in_chans, self.dims[0], patch_size, stem_norm, self.channel_first, **dd
        )
        self.imgsize = pair("imgsize", imgsize)
        self.add_pos_embed = True
        self.pos_embed: nn.Parameter | None = None
        if posembed:
            self.pos_embed = nn.Parameter(torch.empty(1, self.dims[0], *self._pos_size(self.imgsize), **dd))

        total = sum(self.depths)
        rates = iter([drop_path_rate * b / max(total - 1, 1) for b in range(total)])
        options = dict(
            norm_layer=norm,
            channel_first=self.channel_first,
            ssm_d_state=ssm_d_state,
            ssm_ratio=ssm_ratio,
            ssm_dt_rank=ssm_dt_rank,
            ssm_act_layer=find("ssm_act_layer", ssm_act_layer, ACTIVATIONS),
            ssm_conv=ssm_conv,
            ssm_conv_bias=ssm_conv_bias,
            ssm_drop_rate=ssm_drop_rate,
            ssm_init=ssm_init,
            forward_type=forward_type,
            mlp_ratio=mlp_ratio,
            mlp_act_layer=find("mlp_act_layer", mlp_act_layer, ACTIVATIONS),
            mlp_drop_rate=mlp_drop_rate,
            gmlp=gmlp,
            use_checkpoint=use_checkpoint,
            _SS2D=_SS2D,
            **dd,
        )
        self.layers = nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        reduction = patch_size if self.versions[0] == "v1" else (patch_size // 2) ** 2
        for i, (dim, depth) in enumerate(zip(self.dims, self.depths, strict=True)):
            blocks = nn.Sequential(*(VSSBlock(dim, next(rates), **options) for _ in range(depth)))
            shrink: nn.Module = nn.Identity()
            if i + 1 < len(self.dims):
                shrink = downsample(downsample_version, dim, self.dims[i + 1], norm, self.channel_first, **dd)
            self.layers.append(nn.Sequential(OrderedDict(blocks=blocks, downsample=shrink)))
            self.feature_info.append(dict(num_chs=dim, reduction=reduction, module=f"layers.{i}.blocks"))
            reduction *= 1 if self.versions[1] == "none" else 2

        self.classifier = Classifier(
            self.num_features, num_classes, norm, self.channel_first, global_pool, drop_rate, **dd
        )
        self.least_size = next(n for n in itertools.count(1) if min(self.stage_sizes(n)) >= 1)
        self.init_weights(needs_reset=False)

    @torch.no_grad()
    def init_weights(self, needs_reset: bool = True) -> None:
        """Draw every parameter anew in place, for instance after meta-device construction and `to_empty`."""
        if needs_reset:
            self._reset_layers()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    # sizes

    def stage_sizes(self, n: int) -> list[int]:
        """The height of the map at each stage for an image of height `n`, or the width for a width; 0 if none."""
        stem, shrink = self.versions
        if stem == "v1":
            n //= self.patch_size
        else:
            stride = self.patch_size // 2
            for _ in range(2):
                n = (n + 1) // stride if n > 0 else 0
        sizes = [n]
        for _ in self.depths[1:]:
            n = {"v1": (n + 1) // 2, "v2": n // 2, "v3": (n + 1) // 2, "none": n}[shrink]
            sizes.append(n)
        return sizes

    def _pos_size(self, size: tuple[int, int]) -> tuple[int, int]:
        if min(size) < self.patch_size:
            raise UserError(f"imgsize: expected at least patch_size {self.patch_size}, got {size}")
        return size[0] // self.patch_size, size[1] // self.patch_size

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        """Resize the position embedding, where there is one, to another image size. The patch size cannot change."""
        if patch_size is not None and patch_size != self.patch_size:
            raise UserError(f"patch_size: fixed at {self.patch_size}, got {patch_size}; build another model")
        if img_size is None:
            return
        size = pair("img_size", img_size)
        grid = self._pos_size(size)
        self.imgsize = size
        if self.pos_embed is not None:
            with torch.no_grad():
                self.pos_embed = nn.Parameter(resize_pos_embed(self.pos_embed, grid), self.pos_embed.requires_grad)

    # forward

    def _stem(self, x: Tensor) -> Tensor:
        x = checked_images(x, self.in_chans, self.least_size)
        x = self.patch_embed(channels_last(x))
        if self.pos_embed is not None and self.add_pos_embed:
            x = with_pos_embed(x, self.pos_embed, self.channel_first)
        return x

    def _stages(self, x: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """The output of the blocks of each stage up to `last`, before the downsampling, in the model's layout."""
        x = self._stem(x)
        layers: list[Any] = list(self.layers if last is None else self.layers[: last + 1])
        for i, layer in enumerate(layers):
            x = layer.blocks(x)
            yield x
            if i + 1 < len(layers):
                x = layer.downsample(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """The normed output of the last stage in the model's layout (`output_fmt`)."""
        for stage in self._stages(x):
            x = stage
        return self._normed(x)

    def _normed(self, x: Tensor) -> Tensor:
        return self.classifier.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (or, with `pre_logits`, pooled features) from the output of `forward_features`."""
        return self.classifier.logits(x, pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """(forward_features(x), maps of the stages `indices`), or the maps only.

        Args:
            indices: stages, an int for the last n, None for all. norm: apply the final norm to the last stage's map.
            stop_early: leave out stages after the last index (only with `intermediates_only`).
            output_fmt: "NCHW" or "NHWC".
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt: expected 'NCHW' or 'NHWC', got {output_fmt!r}")
        taken, final = feature_take_indices(len(self.layers), indices)
        maps = []
        for i, stage in enumerate(self._stages(x, final if stop_early and intermediates_only else None)):
            x = stage
            if i in taken:
                maps.append(self._in_layout(self._normed(x) if norm and i == len(self.dims) - 1 else x, output_fmt))
        return maps if intermediates_only else (self._normed(x), maps)

    def _in_layout(self, x: Tensor, layout: str) -> Tensor:
        if layout != self.output_fmt:
            x = x.permute(0, 3, 1, 2) if layout == "NCHW" else x.permute(0, 2, 3, 1)
        return x.contiguous()

    # timm's interface

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of `indices`, and norm and head if asked; return the indices."""
        taken, final = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: final + 1]
        if prune_norm:
            self.classifier.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The linear head."""
        return self.classifier.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes` (0: none) and, if given, another pooling ("avg", "max", "")."""
        self.num_classes = num_classes
        self.classifier.reset(num_classes, global_pool, like=next(self.parameters()))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order the parameters from input to output, for layer-wise learning rates."""
        fine = [
            (r"^layers\.(\d+)\.blocks\.(\d+)", None),
            (r"^layers\.(\d+)\.downsample", MATCH_PREV_GROUP),
            (r"^classifier\.norm", MATCH_PREV_GROUP),
        ]
        return dict(stem=r"^patch_embed|^pos_embed", blocks=r"^layers\.(\d+)" if coarse else fine)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay, as published."""
        return {"pos_embed"}

    def read_published_keys(
        self, state_dict: Mapping[str, Tensor], prefix: str = ""
    ) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Shapes]]:
        """The weights under the present names, {old name: new name}, and {key: (old, new shape)} of what was resized.

        Only keys that start with `prefix` are read; the position embedding is resized to this model's.
        """
        state, renamed = rename_published_keys(state_dict, prefix)
        key = f"{prefix}pos_embed"
        pos = state.get(key)
        if pos is None or self.pos_embed is None or pos.dim() != 4 or pos.shape[2:] == self.pos_embed.shape[2:]:
            return state, renamed, {}
        height, width = self.pos_embed.shape[2:]
        state[key] = resize_pos_embed(pos, (height, width))
        return state, renamed, {key: (tuple(pos.shape), tuple(state[key].shape))}


class Backbone(VSSM):
    """VSSM without a classifier: a list of maps [B, dims[i], H_i, W_i], one per index, each with its own norm.

    A map is taken after the blocks of stage i and before the downsampling (strides 4, 8, 16, 32). `out_indices=()`
    gives the last stage's output itself, in the model's layout. `pretrained` is a checkpoint file of a VSSM or of a
    Backbone; a failure to load is an error. The published backbone carries `posembed` and never adds it: so does this
    one, frozen and with a warning, unless `add_pos_embed` is set.
    """

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: str | None = None,
        norm_layer: str = "ln",
        *,
        add_pos_embed: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(norm_layer=norm_layer, **kwargs)
        del self.classifier
        self.add_pos_embed = add_pos_embed
        if self.pos_embed is not None and not add_pos_embed:
            self.pos_embed.requires_grad_(False)
            warnings.warn("Backbone leaves pos_embed out, as published; add_pos_embed=True adds it", stacklevel=2)
        wrong = [i for i in out_indices if not 0 <= i < len(self.dims)]
        if wrong:
            raise UserError(f"out_indices: {wrong[0]} is not a stage; this model has stages 0..{len(self.dims) - 1}")
        self.out_indices = tuple(out_indices)
        dd = {k: v for k, v in kwargs.items() if k in ("device", "dtype")}
        for i in self.out_indices:
            self.add_module(f"outnorm{i}", find("norm_layer", norm_layer, NORMS)(self.dims[i], **dd))
        if pretrained is not None:
            self.load_pretrained(pretrained)

    def load_pretrained(self, path: str) -> Any:
        """Load a checkpoint and return the loader's report; only `outnorm*` may be absent, a classifier superfluous."""
        from ..weights import load_weights

        return load_weights(self, path, allow_missing=("outnorm*",), allow_unexpected=("classifier.*",))

    def _normed(self, x: Tensor) -> Tensor:
        return x

    def get_classifier(self) -> nn.Module:
        """An identity: a backbone has no head."""
        return nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Nothing for 0 classes; a backbone takes no head."""
        if num_classes:
            raise UserError(f"num_classes: a Backbone has no classifier, got {num_classes}; use VSSM")

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The features themselves."""
        return x

    def forward(self, x: Tensor) -> Any:
        maps = []
        for i, stage in enumerate(self._stages(x, max(self.out_indices, default=None))):
            x = stage
            if i in self.out_indices:
                maps.append(self._in_layout(getattr(self, f"outnorm{i}")(x), "NCHW"))
        return maps if self.out_indices else x


@register_notrace_function
def checked_images(x: Tensor, channels: int, least_size: int) -> Tensor:
    """`x` [B, C, H, W] itself; ValueError for another rank or number of channels, or sides below `least_size`."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"x: expected images [B, {channels}, H, W], got {tuple(x.shape)}")
    if not torch.compiler.is_compiling() and min(x.shape[2:]) < least_size:
        raise ValueError(
            f"x: this model needs images of at least {least_size}x{least_size}, got {tuple(x.shape)}; "
            "enlarge them or use a smaller patch_size or fewer stages"
        )
    return x


@register_notrace_function
def with_pos_embed(x: Tensor, pos: Tensor, channel_first: bool) -> Tensor:
    """The sum of x, [B, C, h, w] or [B, h, w, C], and the position embedding [1, C, *, *], resized to h and w."""
    height, width = x.shape[2:] if channel_first else x.shape[1:3]
    if torch.compiler.is_compiling() or pos.shape[2:] != (height, width):
        pos = resize_pos_embed(pos, (height, width))
    return x + (pos if channel_first else pos.permute(0, 2, 3, 1))


def _refuse_unknown(unknown: dict[str, Any]) -> None:
    """TypeError naming the first unknown constructor argument and the nearest known one."""
    for name in unknown:
        if name == "ssm_rank_ratio":
            raise TypeError("VSSM: 'ssm_rank_ratio' has never had an effect; remove it or set ssm_dt_rank")
        known = [p for p in inspect.signature(VSSM.__init__).parameters if p not in ("self", "unknown")]
        known += ["out_indices", "pretrained", "add_pos_embed"]
        raise TypeError(f"VSSM: unknown argument {name!r}.{closest(name, known)}")
