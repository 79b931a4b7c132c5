"""Our rules as handlers for fvcore's FlopCountAnalysis, which counts by the operators of a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from vmamba.counting.operators import OURS, OperatorRule

Handler = Callable[[Sequence[Any], Sequence[Any]], int]


def fvcore_handlers() -> dict[str, Handler]:
    """Return {operator: handler} for ``FlopCountAnalysis(model, x).set_op_handle(**fvcore_handlers())``.

    With them fvcore gives the sum of `count_model`. Beside our own operators the einsum is replaced: fvcore's own loses
    the last digits of a large count. RMSNorm, which fvcore leaves out, has its rule. fvcore itself is not needed for
    the call.
    """
    others = {"aten::einsum": _einsum, "aten::rms_norm": _rms_norm}
    return {**{name: _handler(rule) for name, rule in OURS.items()}, **others}


def _handler(rule: OperatorRule) -> Handler:
    return lambda inputs, outputs: rule([_shape(value) for value in inputs], _shape(outputs[0]))


def _shape(value: Any) -> list[int] | None:
    """Return the sizes of a traced tensor, None for a value that is no tensor."""
    return value.type().sizes() if value.isCompleteTensor() else None


def _einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """The MACs of a contraction of two operands: one for each combination of its indices."""
    terms = inputs[0].toIValue().replace(" ", "").split("->")[0].split(",")
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        sizes.update(zip(term, shape or (), strict=True))
    return prod(sizes.values())


def _rms_norm(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    return 4 * prod(_shape(inputs[0]) or ())
