"""The scans of a forward, read off the operators as they are called, whichever of them a mixer uses.

SS2D (VMamba), SS2DMamba2, and the mixers of Vim and FastVim; any scan order, any grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from analyze.operands import Operands, of_mamba_inner, of_pooled_scan, of_selective_scan, of_ss2d, of_ssd
from analyze.scans import Scan
from vmamba.errors import UserError
from vmamba.models import SS2D, Vim
from vmamba.models.class_tokens import class_token_places
from vmamba.models.vim_block import Block
from vmamba.models.vim_mixer import VimMixer
from vmamba_kernels import scan_order

READERS: dict[str, Callable[..., Operands]] = {
    "vmamba::selective_scan": of_selective_scan,
    "vmamba::selective_scan_triton": of_selective_scan,
    "vmamba::selective_scan_reference": of_selective_scan,
    "vmamba::mamba_inner": of_mamba_inner,
    "vmamba::ss2d": of_ss2d,
    "vmamba::ssd": of_ssd,
    "vmamba::pooled_scan": of_pooled_scan,
}


def record(network: nn.Module, x: Tensor) -> dict[str, Scan]:
    """Return the scans of a forward of x [1, C, H, W] by the names of their mixers, in the order in which they ran.

    The two halves of a cascade are named apart, ".rows" and ".columns". Raises `UserError` for a network without such
    mixers, and for tokens that are not a grid of rows and columns.
    """
    if x.shape[0] != 1:
        raise ValueError(f"x: expected one image [1, C, H, W], got {tuple(x.shape)}")
    recorder = _Recorder(network)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for name, module in network.named_modules():
            if isinstance(module, SS2D | VimMixer):
                stack.callback(module.register_forward_pre_hook(recorder.enter(name)).remove)
                stack.callback(module.register_forward_hook(recorder.leave).remove)
        with recorder:
            network(x)
    if not recorder.scans:
        known = "VMamba, mamba2, Vim and FastVim have them"
        raise UserError(f"model: {type(network).__name__} has no scan whose matrix could be drawn; {known}")
    return recorder.scans


@dataclass
class _Running:
    """A mixer that is being called: its grid, how many of its scans have run, and its tokens by place in a sequence."""

    name: str
    module: nn.Module
    grid: tuple[int, int]
    calls: int = 0


class _Recorder(TorchDispatchMode):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.blocks = {f"{name}.mixer": m for name, m in network.named_modules() if isinstance(m, Block)}
        self.scans: dict[str, Scan] = {}
        self.running: list[_Running] = []

    def enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.running.append(_Running(name, module, _grid(module, args)))

        return hook

    def leave(self, *_: Any) -> None:
        self.running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in READERS and self.running:
            running = self.running[-1]
            operands = READERS[name](*args)
            place = _of_vim if isinstance(running.module, VimMixer) else _of_ss2d
            scan = place(self, running, operands)
            self.scans[scan.layer] = scan
            running.calls += 1
        return result


def _grid(module: nn.Module, args: tuple[Any, ...]) -> tuple[int, int]:
    if isinstance(module, SS2D):
        shape = args[0].shape
        return (shape[2], shape[3]) if module.channel_first else (shape[1], shape[2])
    grid = args[1] if len(args) > 1 else None
    if grid is None or len(grid) != 2:
        raise UserError(f"model: its tokens are the grid {grid}, not rows and columns of an image; name Vim or FastVim")
    return int(grid[0]), int(grid[1])


def _scan(
    running: _Running, operands: Operands, layer: str, classes: int, grid: tuple[int, int], **places: Any
) -> Scan:
    o = operands
    tokens = o.u[..., None] if o.tokens is None else o.tokens
    return Scan(layer, grid, classes, o.u, o.delta, o.A, o.B, o.C, o.D, tokens, **places)


def _of_ss2d(recorder: _Recorder, running: _Running, operands: Operands) -> Scan:
    mixer: Any = running.module
    grid, device = running.grid, operands.u.device
    order = mixer.options.scan_order
    if order != "cascade2d":
        places = scan_order(order, *grid, device=device)[None, :, :, None]  # [1, K, L, 1]
        return _scan(running, operands, running.name, 0, grid, reads=places, writes=places)
    # A line is a row, in the second half a column; its two sequences walk it from either end.
    numbers = torch.arange(grid[0] * grid[1], device=device).view(grid)
    lines = numbers if running.calls == 0 else numbers.T
    reads = torch.stack([lines, lines.flip(-1)], dim=1)[..., None]  # [M, 2, L, 1]
    writes = reads if mixer.options.flip_back else torch.stack([lines, lines], dim=1)[..., None]
    layer = f"{running.name}.{('rows', 'columns')[running.calls]}"
    return _scan(running, operands, layer, 0, grid, reads=reads, writes=writes)


def _of_vim(recorder: _Recorder, running: _Running, operands: Operands) -> Scan:
    mixer: Any = running.module
    numbers, grid, classes = _numbers(recorder, running, operands.u.device)
    scale = 1.0
    if operands.pools is not None:  # [L, c], the tokens of each step
        steps = numbers[operands.pools]
        places = torch.stack([steps.flip(0) if back else steps for back in operands.reverse])[None]
        scale = 1 / len(operands.reverse) if operands.average else 1.0
        exact = mixer.collapse_method == "mean"
        return _scan(
            running, operands, running.name, classes, grid,
            reads=places, writes=places, scale=scale, read_scale=mixer.scaling_factor, exact=exact,
        )  # fmt: skip
    directions = [numbers, numbers.flip(0)][: operands.u.shape[1]]
    places = torch.stack(directions)[None, :, :, None]
    scale = 0.5 if mixer.divide else 1.0
    return _scan(running, operands, running.name, classes, grid, reads=places, writes=places, scale=scale)


def _numbers(recorder: _Recorder, running: _Running, device: torch.device) -> tuple[Tensor, tuple[int, int], int]:
    """The number of the token at each place of a mixer's sequence, the grid of the image, and its class tokens."""
    model: Any = next((m for m in recorder.network.modules() if isinstance(m, Vim)), None)
    rows, columns = running.grid
    block: Any = recorder.blocks.get(running.name)
    turned = bool(block is not None and block.swaps) != bool(model is not None and model.scans_columns)
    grid = (columns, rows) if turned else (rows, columns)
    image = torch.arange(rows * columns, device=device).view(grid)
    image = (image.T if turned else image).flatten()
    kind = "none" if model is None else model.class_token
    places = class_token_places(kind, rows * columns)
    if model is not None and model.flip_img_sequences_ratio > 0:
        raise UserError("model: it reverses its tokens at random (flip_img_sequences_ratio); build it without")
    for number, place in enumerate(places):
        extra = image.new_tensor([rows * columns + number])
        image = torch.cat([image[:place], extra, image[place:]])
    if model is not None and model.if_bidirectional and block is not None:
        turned_back = list(model.layers).index(block) % 2 == 1
        image = image.flip(0) if turned_back else image
    return image, grid, len(places)
