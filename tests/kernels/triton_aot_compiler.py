"""Compiles Triton kernels to cubins in a process of its own, because Triton's interpreter cannot be left once chosen.

Standard input: JSON {path: the fields of an AotKernel}; argument: the compute capability. Beside each path it writes
.cubin and .shared, the bytes of shared memory.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def compile_one(kernel: dict[str, Any], architecture: int) -> Any:
    """The compiled kernel; ValueError if its arguments are not those described."""
    module, name = kernel["kernel"].split(":")
    function = getattr(import_module(module), name)
    while not hasattr(function, "arg_names"):  # an autotuner or a heuristic around it
        function = function.fn
    run_time, constant = kernel["signature"], kernel["constexprs"]
    described = {*run_time, *constant}
    if described != set(function.arg_names) or run_time.keys() & constant.keys():
        raise ValueError(f"{kernel['kernel']} takes {function.arg_names}, described are {sorted(described)}")
    signature = {name: run_time.get(name, "constexpr") for name in function.arg_names}
    aligned = [n for n in run_time if run_time[n].startswith("*") or n in kernel["divisible"]]
    source = ASTSource(
        function,
        signature,
        {(function.arg_names.index(n),): value for n, value in constant.items()},
        {(function.arg_names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": kernel["num_warps"], "num_stages": kernel["num_stages"]}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def main() -> None:
    for path, kernel in json.load(sys.stdin).items():
        compiled = compile_one(kernel, int(sys.argv[1]))
        Path(path).with_suffix(".cubin").write_bytes(compiled.asm["cubin"])
        Path(path).with_suffix(".shared").write_text(str(compiled.metadata.shared))


if __name__ == "__main__":
    main()
