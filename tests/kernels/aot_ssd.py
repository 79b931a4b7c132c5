"""The Triton kernels of ssd as they are launched for VMamba's mamba2 models; WIDE: heads of 32 channels and more."""

from __future__ import annotations

from .triton_aot import AotKernel

MODULE = "vmamba_kernels.ssd.triton_kernels"
PREPARED = {"size": "*fp32", "high": "*fp32", "low": "*fp32"}
SIZES = ("length", "chunks", "heads")


def _strides(*names: str, third: str = "head") -> dict[str, str]:
    return {f"{name}_{axis}": "i32" for name in names for axis in ("batch", "time", third)}


def _kernel(name: str, pointers: dict[str, str], numbers: dict[str, str], constexprs: dict, **gates) -> AotKernel:
    signature = pointers | numbers
    divisible = tuple(n for n in signature if n.endswith(("_batch", "_time", "_head", "_group")) or n in ("P", "N"))
    return AotKernel(f"{MODULE}:{name}", signature, constexprs, divisible=divisible, **gates)


def _steps(name: str, dtype: str, outputs: dict[str, str], **gates) -> AotKernel:
    pointers = {"dt": dtype, "bias": "*fp32", "A": "*fp32"} | outputs
    numbers = _strides("dt") | dict.fromkeys(SIZES, "i32") | {"dt_min": "fp32", "dt_max": "fp32"}
    constexprs = {"SOFTPLUS": True, "HAS_BIAS": True, "Q": 64, "BH": 16}
    return _kernel(name, pointers, numbers, constexprs, load_bits=0, store_bits=0, **gates)


def _tiles(precision: str, BP: int, BN: int, Q: int = 64) -> dict:
    return {"PRECISION": precision, "Q": Q, "BP": BP, "BN": BN}


def _chunk_states(dtype: str, tiles: dict, to_end: bool, **gates) -> AotKernel:
    pointers = {"value": dtype, "projection": dtype, **PREPARED, "states": "*fp32"}
    numbers = _strides("value") | _strides("projection", third="group")
    numbers |= dict.fromkeys([*SIZES, "per_group", "P", "N"], "i32")
    return _kernel("chunk_states_kernel", pointers, numbers, {"TO_END": to_end, **tiles}, num_warps=8, **gates)


def _outputs(dtype: str, tiles: dict, **gates) -> AotKernel:
    pointers = {"x": dtype, "B": dtype, "C": dtype, "D": "*fp32", **PREPARED, "states": "*fp32", "y": "*fp32"}
    numbers = _strides("x") | _strides("B", "C", third="group")
    numbers |= dict.fromkeys([*SIZES, "per_group", "per_program", "P", "N"], "i32")
    return _kernel("outputs_kernel", pointers, numbers, {"HAS_D": True, **tiles}, num_warps=8, **gates)


def _head_gradients(dtype: str, tiles: dict, **gates) -> AotKernel:
    pointers = {"dy": "*fp32", "x": dtype, "B": dtype, "C": dtype, "D": "*fp32", **PREPARED}
    pointers |= {"states": "*fp32", "grads": "*fp32", "dx": dtype}
    pointers |= dict.fromkeys(["dD", "dsize", "da", "da_next"], "*fp32")
    numbers = _strides("dy", "x") | _strides("B", "C", third="group")
    numbers |= dict.fromkeys([*SIZES, "per_group", "per_program", "P", "N"], "i32")
    return _kernel("head_gradients_kernel", pointers, numbers, {"HAS_D": True, **tiles}, num_warps=8, **gates)


def _group_gradients(dtype: str, tiles: dict, **gates) -> AotKernel:
    pointers = {"dy": "*fp32", "x": dtype, "B": dtype, "C": dtype, **PREPARED}
    pointers |= {"states": "*fp32", "grads": "*fp32", "dB": dtype, "dC": dtype}
    numbers = _strides("dy", "x") | _strides("B", "C", third="group")
    numbers |= dict.fromkeys([*SIZES, "groups", "per_group", "per_program", "P", "N"], "i32")
    return _kernel("group_gradients_kernel", pointers, numbers, tiles, num_warps=8, **gates)


_PASS_ARGUMENTS = dict.fromkeys(["states", "first", "last", "high"], "*fp32")
_PASS_ARGUMENTS |= dict.fromkeys(["chunks", "heads", "numel"], "i32")
_PASS = {"REVERSE": False, "HAS_FIRST": False, "Q": 64, "BLOCK": 256}
_STEP_OUTPUTS = dict.fromkeys(["size", "dsize", "da", "da_next"], "*fp32") | {"ddt": "*bf16"}
_STEP_OUTPUTS |= {"dA": "*fp32", "dbias": "*fp32"}
EXACT = _tiles("ieee", 16, 32)
WIDE = _tiles("ieee", 32, 32)
BY_TENSOR_CORES = _tiles("tf32", 16, 32)

KERNELS = [
    _steps("steps_kernel", "*bf16", PREPARED, registers=48),
    _steps("step_gradients_kernel", "*bf16", _STEP_OUTPUTS, registers=96),
    AotKernel(
        f"{MODULE}:pass_states_kernel",
        _PASS_ARGUMENTS,
        _PASS,
        registers=48,
        divisible=("numel",),
    ),
    _chunk_states("*fp32", WIDE, True, registers=128),
    _outputs("*fp32", EXACT, registers=96),
    _outputs("*fp32", WIDE, registers=216),
    _outputs("*bf16", EXACT, registers=112),
    _outputs("*bf16", _tiles("tf32", 32, 32), registers=128),
    _head_gradients("*fp32", EXACT, registers=216),
    _head_gradients("*bf16", EXACT, registers=208),
    _head_gradients("*bf16", BY_TENSOR_CORES, registers=255),
    _group_gradients("*fp32", _tiles("ieee", 16, 16), registers=216),
    _group_gradients("*bf16", _tiles("ieee", 16, 16), registers=208),
    _group_gradients("*bf16", _tiles("tf32", 16, 16), registers=128),
]
