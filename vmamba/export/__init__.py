"""Models as files that run without their Python code: torch.export programs, AOTInductor packages, ONNX."""

from __future__ import annotations

from .onnx_file import OPSET, onnx_session, write_onnx
from .programs import export_program, least_dynamic_side, load_package, load_program, write_package, write_program

__all__ = [
    "OPSET",
    "export_program",
    "least_dynamic_side",
    "load_package",
    "load_program",
    "onnx_session",
    "write_onnx",
    "write_package",
    "write_program",
]
