"""The scans in ONNX: one `Scan` over time, so any length works and memory grows with the length alone.

Shapes: B batch, K directions or groups of D channels, C channels, L = H*W, R rank, N states, J = K * (R + 2N).
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript import evaluator, opset18

from ..errors import UserError
from .onnx_orders import ints, merged, read, sides

op: Any = opset18  # its types are narrower than what its functions take
INFERENCE = "an ONNX graph stores nothing for a backward; export under torch.no_grad()"


def _step(A: Any, dtype: ir.DataType) -> ir.Graph:
    """One step: (h, dt, dt u, B, C) -> (exp(dt A) h + B dt u, <C, h>); A belongs to the graph outside."""
    inputs = [ir.Value(name=f"step_{name}", type=ir.TensorType(dtype)) for name in ("h", "dt", "drive", "b", "c")]
    h, dt, drive, b, c = inputs
    nodes: list[ir.Node] = []

    def node(kind: str, name: str, *arguments: ir.Value) -> ir.Value:
        nodes.append(ir.Node("", kind, arguments, num_outputs=1))
        result = nodes[-1].outputs[0]
        result.name, result.type = f"step_{name}", ir.TensorType(dtype)
        return result

    decay = node("Exp", "decay", node("Mul", "exponent", dt, A))
    new = node("Add", "new", node("Mul", "kept", decay, h), node("Mul", "driven", drive, b))
    return ir.Graph(inputs, [new, node("MatMul", "y", new, c)], nodes=nodes, name="selective_scan_step")


def _scan(start: Any, sequences: list[Any], body: ir.Graph, dtype: ir.DataType) -> tuple[Any, Any]:
    """The last state and the outputs of `body` along the first axis of the sequences."""
    attributes = ir.convenience.convert_attributes({"body": body, "num_scan_inputs": len(sequences)})
    node = ir.Node("", "Scan", [start, *sequences], attributes=attributes, num_outputs=2)
    recorder: Any = evaluator.default()
    recorder.nodes.append(node)
    last, outputs = node.outputs
    last.type = outputs.type = ir.TensorType(dtype)
    return last, outputs


def cast(x: Any, dtype: ir.DataType) -> Any:
    return x if x.dtype == dtype else op.Cast(x, to=dtype.value)


def recurrence(
    u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, delta_bias: Any, softplus: bool, sizes: tuple[int, int, int]
) -> tuple[Any, Any]:
    """y [B, KD, L] and the last state [B, KD, N]; u, delta of A's type, B and C [B, K, N, L]; sizes K, D, N."""
    groups, per_group, states = sizes
    channels = groups * per_group
    if delta_bias is not None:
        delta = op.Add(delta, op.Unsqueeze(delta_bias, ints(1)))
    if softplus:
        delta = op.Softplus(delta)
    dt = op.Reshape(op.Transpose(delta, perm=[2, 0, 1]), ints(0, 0, groups, per_group, 1))  # [L, B, K, D, 1]
    drive = op.Mul(dt, op.Reshape(op.Transpose(u, perm=[2, 0, 1]), ints(0, 0, groups, per_group, 1)))
    b = op.Unsqueeze(op.Transpose(B, perm=[3, 0, 1, 2]), ints(3))  # [L, B, K, 1, N]
    c = op.Unsqueeze(op.Transpose(C, perm=[3, 0, 1, 2]), ints(4))  # [L, B, K, N, 1]
    zero = op.Constant(value=ir.tensor([0.0], dtype=A.dtype))
    start = op.Expand(zero, op.Concat(op.Shape(u, start=0, end=1), ints(groups, per_group, states), axis=0))
    last, y = _scan(start, [dt, drive, b, c], _step(op.Reshape(A, ints(groups, per_group, states)), A.dtype), A.dtype)
    y = op.Transpose(op.Reshape(y, ints(0, 0, channels)), perm=[1, 2, 0])  # [B, KD, L]
    if D is not None:
        y = op.Add(y, op.Mul(u, op.Unsqueeze(D, ints(1))))
    return y, op.Reshape(last, ints(0, channels, states))


def no_states(batch_of: Any, A: Any) -> Any:
    """The stored states of a forward that keeps none: [B, 0, N, KD]."""
    zero = op.Constant(value=ir.tensor([0.0], dtype=A.dtype))
    shape = op.Concat(op.Shape(batch_of, start=0, end=1), ints(0, A.shape[1], A.shape[0]), axis=0)
    return op.Expand(zero, shape)


def selective_scan(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = True,
    out_dtype: int = 1,
    save_states: bool = False,
) -> tuple[Any, Any, Any]:
    """The values of `vmamba::selective_scan`: y [B, KD, L], the last state [B, KD, N], no stored states."""
    if save_states:
        raise UserError(f"selective_scan: {INFERENCE}")
    channels, groups, states = u.shape[1], B.shape[1], A.shape[1]
    per_delta = channels // delta.shape[1]
    wide = [cast(x, A.dtype) for x in (u, delta, B, C)]
    if per_delta > 1:  # delta channel d serves the channels d * per_delta and after
        wide[1] = _repeated(wide[1], per_delta)
        delta_bias = None if delta_bias is None else _repeated(delta_bias, per_delta)
    y, last = recurrence(
        wide[0], wide[1], A, wide[2], wide[3], D, delta_bias, delta_softplus, (groups, channels // groups, states)
    )
    return op.Cast(y, to=out_dtype), last, no_states(u, A)


def _repeated(x: Any, times: int) -> Any:
    """[DD, ...] or [B, DD, L] with each channel repeated in place."""
    if len(x.shape or (0, 0, 0)) == 1:
        return op.Reshape(op.Tile(op.Unsqueeze(x, ints(1)), ints(1, times)), ints(-1))
    tiled = op.Tile(op.Unsqueeze(x, ints(2)), ints(1, 1, times, 1))
    return op.Reshape(tiled, op.Concat(op.Shape(x, start=0, end=1), ints(-1), op.Shape(x, start=2, end=3), axis=0))


def ss2d(
    x: Any,
    x_dbl: Any,
    dt_weight: Any,
    A: Any,
    D: Any = None,
    delta_bias: Any = None,
    order: str = "cross2d",
    channel_first: bool = False,
    out_dtype: int = 1,
    save_states: bool = False,
    backend: str = "",
) -> tuple[Any, Any]:
    """The values of `vmamba::ss2d`: y in the layout of x, no stored states."""
    if save_states:
        raise UserError(f"ss2d: {INFERENCE}")
    directions, channels, rank = dt_weight.shape
    states = A.shape[1]
    height, width = sides(x, 2 if channel_first else 1)
    image, rows = cast(x, A.dtype), cast(x_dbl, A.dtype)
    if not channel_first:
        image, rows = (op.Transpose(t, perm=[0, 3, 1, 2]) for t in (image, rows))
    u = read(image, order)  # [B, K, C, L]
    each = op.Concat(ints(0, directions, rank + 2 * states), height, width, axis=0)
    p = read(op.Reshape(rows, each), order, one_by_one=True)  # [B, K, R + 2N, L]
    ends = (0, rank, rank + states, rank + 2 * states)
    dt, b, c = (op.Slice(p, ints(i), ints(j), ints(2)) for i, j in zip(ends, ends[1:]))
    delta = op.MatMul(dt_weight, dt)  # [B, K, C, L]
    joined = ints(0, directions * channels, -1)
    u, delta = op.Reshape(u, joined), op.Reshape(delta, joined)
    y, _ = recurrence(u, delta, A, b, c, D, delta_bias, True, (directions, channels, states))
    y = op.Cast(merged(op.Reshape(y, ints(0, directions, channels, -1)), order, height, width), to=out_dtype)
    return y if channel_first else op.Transpose(y, perm=[0, 2, 3, 1]), no_states(x, A)


def refuse_limits(initial_states: Any, dt_softplus: bool, dt_min: float | None, dt_max: float | None) -> None:
    """Raise UserError for a start or for bounds that `recurrence` would leave out; a softplus is above 0 anyway."""
    if initial_states is not None or dt_max is not None or (dt_min is not None and (dt_min > 0 or not dt_softplus)):
        raise UserError("ssd: initial states and limits of the step size have no ONNX form here")


def ssd(
    x: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    dt_bias: Any = None,
    initial_states: Any = None,
    dt_softplus: bool = True,
    dt_min: float | None = 0.0,
    dt_max: float | None = None,
    out_dtype: int = 1,
    chunk: int = 64,
    backend: str = "",
) -> tuple[Any, Any]:
    """The values of `vmamba::ssd`, the selective scan with A shared by the channels of a head: y and the last state."""
    refuse_limits(initial_states, dt_softplus, dt_min, dt_max)
    heads, width, groups, states = x.shape[2], x.shape[3], B.shape[2], B.shape[3]
    work = A.dtype
    u, delta, b, c = (cast(t, work) for t in (x, dt, B, C))
    u = op.Transpose(op.Reshape(u, ints(0, 0, heads * width)), perm=[0, 2, 1])  # [B, HP, L]
    delta = _repeated(op.Transpose(delta, perm=[0, 2, 1]), width)
    dt_bias = None if dt_bias is None else _repeated(dt_bias, width)
    shared = op.Reshape(op.Expand(op.Unsqueeze(A, ints(1)), ints(heads, width * states)), ints(-1, states))
    shared.type = ir.TensorType(work)
    b, c = (op.Transpose(t, perm=[0, 2, 3, 1]) for t in (b, c))  # [B, G, N, L]
    skip = None if D is None else op.Reshape(D, ints(-1))
    sizes = (groups, heads * width // groups, states)
    y, last = recurrence(u, delta, shared, b, c, skip, dt_bias, dt_softplus, sizes)
    y = op.Reshape(op.Transpose(y, perm=[0, 2, 1]), ints(0, 0, heads, width))
    return op.Cast(y, to=out_dtype), op.Reshape(last, ints(0, heads, width, states))
