"""Which backends an operator has. Adding one is one `register` call beside the operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TypeVar

import torch
from torch.autograd import forward_ad

_Function = TypeVar("_Function", bound=Callable[..., object])


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    `devices` are the device types it runs on (empty: every one), `on_request` more of them where it runs only when it
    is named; `missing()` is why it cannot run, "" if it can.
    """

    operator: str
    name: str
    devices: tuple[str, ...] = ()
    on_request: tuple[str, ...] = ()
    missing: Callable[[], str] = lambda: ""

    def serves(self, device: str) -> bool:
        return not self.devices or device in self.devices


# The folders of the operators; importing one registers its backends.
OPERATORS = (
    "causal_conv1d",
    "conv2d",
    "cross_scan",
    "depthwise_silu",
    "mamba_inner",
    "mlp",
    "pooled_scan",
    "rms_norm",
    "selective_scan",
    "ss2d",
    "ssd",
)
_backends: dict[str, list[Backend]] = {}


def register(backend: Backend) -> None:
    """Append a backend to its operator; of those that serve a device and are present, the first registered is used."""
    _backends.setdefault(backend.operator, []).append(backend)


def operators() -> list[str]:
    """Names of the operators."""
    for name in OPERATORS:
        import_module(f"{__package__}.{name}")
    return list(OPERATORS)


def names(operator: str) -> list[str]:
    """Names of the backends of an operator."""
    return [backend.name for backend in _backends[operator]]


def registered(operator: str) -> tuple[Backend, ...]:
    """The backends of an operator, the preferred first."""
    return tuple(_backends[operator])


def constant_in_graphs(function: _Function) -> _Function:
    """`function`, whose result a graph takes as it was when it was traced.

    The mark is that of torch.compiler.assume_constant_result, which imports torch._dynamo, and with it Triton, for more
    than a second. Where PyTorch does not know the mark, it traces the function, and guards what it reads.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def exporting() -> bool:
    """Whether torch.export traces. Asked directly, the answer in a graph of torch.compile would always be yes."""
    return torch.compiler.is_exporting()


@constant_in_graphs
def transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is at work: both know plain operators."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def choose(operator: str, device: str) -> tuple[Backend, list[tuple[str, str]]]:
    """The backend that serves a device type and (name, reason) of those preferred to it that cannot."""
    refused: list[tuple[str, str]] = []
    for backend in _backends[operator]:
        if not backend.serves(device):
            continue
        why = backend.missing()
        if not why:
            return backend, refused
        refused.append((backend.name, why))
    raise RuntimeError(f"{operator}: no backend for device {device!r}")


def require(operator: str, name: str, device: str) -> Backend:
    """The backend of that name.

    ValueError if there is none or if it does not serve the device; RuntimeError, with the remedy, if it is absent.
    """
    found = next((backend for backend in _backends[operator] if backend.name == name), None)
    if found is None:
        raise ValueError(f"backend: {name!r} is not one of {', '.join(map(repr, names(operator)))}")
    if not found.serves(device) and device not in found.on_request:
        raise ValueError(f"backend: {name!r} runs on {', '.join(found.devices)}, and the tensors are on {device}")
    why = found.missing()
    if why:
        raise RuntimeError(f"{operator}: backend {name!r} is absent: {why}")
    return found
