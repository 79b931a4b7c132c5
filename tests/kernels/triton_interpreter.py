"""Triton's interpreter, mended: as exact as a GPU in storing bfloat16, and quick enough to test kernels that scan.

It cuts float32 off to bfloat16 where a GPU rounds to nearest; it combines the elements of a scan or of a general
reduction one at a time, and replaces the functions of the language again at each call of a device function. A combining
function of plain arithmetic works on whole rows as well, in the same order, to the same bits.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch


def _rows(ops: Any, inputs: Any) -> list[tuple[np.ndarray, ...]]:
    """For each row along the axis, what the combining function makes of the rows up to it."""
    data = [np.moveaxis(x.handle.data, ops.axis, 0) for x in inputs]
    done = [tuple(d[0] for d in data)]
    for i in range(1, len(data[0])):
        combined = ops.combine_fn.fn(*done[-1], *(d[i] for d in data))
        done.append(combined if isinstance(combined, tuple) else (combined,))
    return done


def _scan(ops: Any, inputs: Any) -> list[Any]:
    with np.errstate(all="ignore"):
        stacked = [np.moveaxis(np.stack(part), 0, ops.axis) for part in zip(*_rows(ops, inputs), strict=True)]
    return [ops.to_tensor(np.ascontiguousarray(a), x.dtype) for a, x in zip(stacked, inputs, strict=True)]


def _reduce(ops: Any, inputs: Any) -> list[Any]:
    assert ops.axis is not None
    kept = [np.expand_dims(a, ops.axis) if ops.keep_dims else a for a in _rows(ops, inputs)[-1]]
    return [ops.to_tensor(a, x.dtype) for a, x in zip(kept, inputs, strict=True)]


def mend(patch: Any) -> None:
    """Mend the interpreter, until the monkeypatch is undone."""
    from triton.language import bfloat16, core, float32
    from triton.runtime import interpreter

    replace, convert = interpreter._patch_lang, interpreter._convert_float

    def replace_once(fn: Any) -> Any:
        languages = [v for v in fn.__globals__.values() if inspect.ismodule(v) and v in (interpreter.tl, core)]
        fresh = any(core.is_builtin(language.load) for language in languages)
        return replace(fn) if fresh else interpreter._LangPatchScope()

    def rounded(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if source != float32 or target != bfloat16:
            return convert(data, source, target, rounding)
        values = torch.from_numpy(np.array(data, dtype=np.float32))
        return values.bfloat16().view(torch.int16).numpy().view(np.uint16)

    patch.setattr(interpreter, "_patch_lang", replace_once)
    patch.setattr(interpreter, "_convert_float", rounded)
    patch.setattr(interpreter.ScanOps, "generic_scan", _scan)
    patch.setattr(interpreter.ReduceOps, "generic_reduce", _reduce)
