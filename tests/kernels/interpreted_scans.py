"""Triton's interpreter, made to scan and reduce whole rows at a time.

It calls the combining function once for each element of a tile, which takes minutes; the function works as well on
rows, in the same order, so that the results are those of the interpreter to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def _rows(ops: Any, inputs: Any) -> list[tuple[Any, ...]]:
    """Row by row along the axis, what the combining function makes of the rows so far, as arrays."""
    data = [np.moveaxis(x.handle.data, ops.axis, 0) for x in inputs]
    types = [x.dtype for x in inputs]
    done = [tuple(d[0] for d in data)]
    for i in range(1, len(data[0])):
        before = [ops.to_tensor(np.asarray(a), t) for a, t in zip(done[-1], types, strict=True)]
        row = [ops.to_tensor(np.asarray(d[i]), t) for d, t in zip(data, types, strict=True)]
        combined = ops.combine_fn.fn(*before, *row)
        combined = combined if isinstance(combined, tuple) else (combined,)
        done.append(tuple(x.handle.data for x in combined))
    return done


def _scan(ops: Any, inputs: Any) -> list[Any]:
    rows = zip(*_rows(ops, inputs), strict=True)
    stacked = (np.moveaxis(np.stack(part), 0, ops.axis) for part in rows)
    return [ops.to_tensor(np.ascontiguousarray(a), x.dtype) for a, x in zip(stacked, inputs, strict=True)]


def _reduce(ops: Any, inputs: Any) -> list[Any]:
    assert ops.axis is not None
    last = _rows(ops, inputs)[-1]
    kept = [np.expand_dims(a, ops.axis) if ops.keep_dims else a for a in last]
    return [ops.to_tensor(a, x.dtype) for a, x in zip(kept, inputs, strict=True)]


def by_rows(patch: Any) -> None:
    """Make the interpreter scan and reduce by rows, until the monkeypatch is undone."""
    from triton.runtime import interpreter

    patch.setattr(interpreter.ScanOps, "generic_scan", _scan)
    patch.setattr(interpreter.ReduceOps, "generic_reduce", _reduce)
