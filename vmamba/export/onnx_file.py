"""A model as an ONNX file: torch's exporter, with this project's operators spelled out in ONNX's own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from vmamba_kernels.causal_conv1d import op as causal_conv1d_op
from vmamba_kernels.cross_scan import op as cross_scan_op
from vmamba_kernels.cross_scan.orders import find_order, list_scan_orders
from vmamba_kernels.pooled_scan import op as pooled_scan_op
from vmamba_kernels.selective_scan import op as selective_scan_op
from vmamba_kernels.ss2d import op as ss2d_op
from vmamba_kernels.ssd import op as ssd_op

from ..errors import UserError

OPSET = 20
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def write_onnx(program: ExportedProgram, path: str | Path) -> None:
    """Write an exported program as one ONNX file of opset 20, with the dynamic sizes that the program has.

    Raises UserError: onnx or onnxscript is not installed, or the program has a scan order that is a registered
    permutation, whose map is code and cannot be written into a file.
    """
    _require(_PACKAGES[:2])
    for node in program.graph.nodes:
        if str(node.target).startswith("vmamba."):
            _check_orders(node.args)
    exported = torch.onnx.export(
        program,
        dynamo=True,
        custom_translation_table=_translations(),
        opset_version=OPSET,
        input_names=["x"],
        verbose=False,
    )
    assert exported is not None
    exported.save(str(path), external_data=False)


def onnx_session(path: str | Path) -> Any:
    """A session of onnxruntime on the CPU, called as ``session.run(None, {"x": array})``; UserError if it is absent."""
    _require(_PACKAGES[2:])
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _require(packages: tuple[str, ...]) -> None:
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        raise UserError(
            f"ONNX needs {', '.join(absent)}; pip install {' '.join(absent)}, or this package's extra 'export'"
        )


def _check_orders(arguments: Any) -> None:
    for argument in arguments:
        if isinstance(argument, str) and argument in list_scan_orders() and not find_order(argument).moves:
            raise UserError(
                f"scan order {argument!r}: a registered permutation is code that a file cannot hold; "
                "export with a built-in order"
            )


def _translations() -> dict[Any, Any]:
    from .onnx_lines import causal_conv1d, pooled_scan
    from .onnx_orders import cross_merge, cross_scan
    from .onnx_scan import selective_scan, ss2d, ssd

    return {
        cross_scan_op.scan: cross_scan,
        cross_scan_op.merge: cross_merge,
        causal_conv1d_op.forward: causal_conv1d,
        pooled_scan_op.forward: pooled_scan,
        selective_scan_op.by_device: selective_scan,
        selective_scan_op.on_reference: selective_scan,
        ss2d_op.forward: ss2d,
        ssd_op.forward: ssd,
    }
