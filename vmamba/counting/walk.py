"""The counts of a model, layer by layer: one fake forward, in which every layer that is called counts itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vmamba.counting.fake import image_shape, images, run, without_memory
from vmamba.counting.operators import OPERATORS
from vmamba.counting.rules import Rule, rule_of

Shapes = tuple[tuple[int, ...], ...]


@dataclass
class Count:
    """What `count_model` found. `macs` is for the whole batch, and so are the tables.

    `image` is the shape of the batch, [B, C, H, W];
    `layers` holds the MACs of each layer by itself, by name; `outputs` the shapes of what each called layer gave;
    `uncovered` the part of `macs` that operators outside any layer with a rule made up (attention, say), by operator.
    """

    parameters: int
    trainable: int
    image: tuple[int, ...]
    layers: Counter[str] = field(default_factory=Counter)
    outputs: dict[str, Shapes] = field(default_factory=dict)
    uncovered: Counter[str] = field(default_factory=Counter)

    @property
    def batch(self) -> int:
        """How many images were counted together."""
        return self.image[0]

    @property
    def macs(self) -> int:
        """The MACs of a forward of the batch."""
        return sum(self.layers.values())

    @property
    def gflops(self) -> float:
        """MACs of one image in billions, the papers' "GFLOPs"."""
        return self.macs / self.batch / 1e9

    def within(self, name: str) -> int:
        """Return the MACs of a layer with all that is inside it."""
        return sum(n for layer, n in self.layers.items() if _inside(layer, name))

    def shapes(self, name: str) -> Shapes:
        """Return the output shapes of a layer or, if it is never called itself, of the last one called inside it."""
        called = [shapes for layer, shapes in self.outputs.items() if _inside(layer, name)]
        return self.outputs.get(name) or (called[-1] if called else ())


def _inside(layer: str, name: str) -> bool:
    return not name or layer == name or layer.startswith(f"{name}.")


def count_model(model: nn.Module, size: int | tuple[int, int] = 224, batch: int = 1) -> Count:
    """Return the parameters and MACs of `model` for images of a size, an int or (height, width).

    Nothing is computed or allocated: the forward runs on fake tensors, so a model on "meta" will do. Each layer counts
    by the rule of its kind (`vmamba.counting.rules`); what runs outside such a layer counts by operator.

    Raises `UserError` where the model does not run at that size.
    """
    image = image_shape(model, size, batch)
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    count = Count(total, sum(p.numel() for p in parameters if p.requires_grad), image)
    walk = _Walk(count)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)  # it hides the products of nn.MultiheadAttention
        stack.enter_context(torch.no_grad())
        mode = stack.enter_context(without_memory(model))
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(walk.enter(name)).remove)
            stack.callback(module.register_forward_hook(walk.leave(name)).remove)
        with mode:
            x = images(model, image)
            with walk:
                run(model, x)
    return count


class _Walk(TorchDispatchMode):
    """Knows which layer runs, counts each as it leaves, and the operators of layers without a rule as they come."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count
        self.running: list[tuple[str, Rule | None]] = []

    def enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.running.append((name, rule_of(module)))

        return hook

    def leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            _, rule = self.running.pop()
            outputs = _shapes(result)
            self.count.outputs[name] = outputs
            if rule and outputs and not self._covered():
                self.count.layers[name] += rule.count(module, next(iter(_shapes(args)), ()), outputs[0])

        return hook

    def _covered(self) -> bool:
        """Whether a layer that counts for its whole inside is running."""
        return any(rule is not None and rule.whole for _, rule in self.running)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in OPERATORS:
            layer, rule = self.running[-1] if self.running else ("", None)
            if (rule is None or rule.by_operators) and not self._covered():
                shapes = [
                    tuple(a.shape) if isinstance(a, Tensor) else (a if isinstance(a, bool) else None) for a in args
                ]
                first = result[0] if isinstance(result, tuple | list) else result
                macs = OPERATORS[name](shapes, tuple(first.shape))
                self.count.layers[layer] += macs
                if rule is None:
                    self.count.uncovered[name] += macs
        return result


def _shapes(value: Any) -> Shapes:
    """Return the shapes of the tensors in a layer's arguments or result, in order."""
    if isinstance(value, Tensor):
        return (tuple(value.shape),)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return tuple(shape for item in value for shape in _shapes(item))
    return ()
