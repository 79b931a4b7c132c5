"""The Triton kernels of the selective scan at the shapes of VMamba, as their launcher specialises them."""

from __future__ import annotations

from .triton_aot import AotKernel

FORWARD = "vmamba_kernels.selective_scan.triton_forward:forward_kernel"
PULL = "vmamba_kernels.selective_scan.triton_backward:pull_kernel"
GRADIENTS = "vmamba_kernels.selective_scan.triton_backward:gradients_kernel"
FP32 = "*fp32"


def _strides(*names: str) -> list[str]:
    return [f"{name}_{axis}" for name in names for axis in ("batch", "step")]


def _kernel(
    kernel: str, tensors: dict[str, str], strides: list[str], d_state: int, channels: int, *, tile: int = 16,
    registers: int, instructions: float, **constexprs: object,
) -> AotKernel:  # fmt: skip
    """A warp for each 32 channels, and a thread that holds all steps of a tile of one channel, so no wide loads."""
    sizes = ["L", *(["N"] if d_state > 1 else []), "K", "width", "chunk", *strides]
    one = {"N": 1} if d_state == 1 else {}
    return AotKernel(
        kernel,
        {**tensors, **dict.fromkeys(sizes, "i32")},
        {**one, **constexprs, "HAS_BIAS": True, "SOFTPLUS": True, "T": tile, "BC": channels},
        registers=registers,
        elements=tile * channels,
        instructions=instructions,
        num_warps=channels // 32,
        divisible=("N",) if d_state > 1 else (),
        load_bits=0,
        store_bits=0,
    )


def forward(dtype: str, d_state: int, channels: int, *, ends: bool, **ceilings) -> AotKernel:
    tensors = {**dict.fromkeys(("u", "delta"), f"*{dtype}"), "A": FP32, "rows": f"*{dtype}"}
    tensors |= dict.fromkeys(("D", "delta_bias", "states", "total", "carry", "y"), FP32)
    strides = _strides("u", "delta", "y")
    return _kernel(FORWARD, tensors, strides, d_state, channels, HAS_D=True, ENDS=ends, **ceilings)


def pull(dtype: str, d_state: int, channels: int, **ceilings) -> AotKernel:
    tensors = {"delta": f"*{dtype}", "A": FP32, "rows": f"*{dtype}"}
    tensors |= dict.fromkeys(("delta_bias", "dy", "pulled", "total"), FP32)
    return _kernel(PULL, tensors, _strides("delta", "dy"), d_state, channels, **ceilings)


def gradients(dtype: str, d_state: int, channels: int, **ceilings) -> AotKernel:
    tensors = {**dict.fromkeys(("u", "delta"), f"*{dtype}"), "A": FP32, "rows": f"*{dtype}"}
    tensors |= dict.fromkeys(("D", "delta_bias", "states", "dy", "dlast", "pulled", "entered", "carry"), FP32)
    tensors |= {**dict.fromkeys(("du", "ddelta"), f"*{dtype}"), **dict.fromkeys(("dA", "d_rows", "dD", "dbias"), FP32)}
    strides = _strides("u", "delta", "dy", "du", "ddelta")
    return _kernel(GRADIENTS, tensors, strides, d_state, channels, tile=8, HAS_D=True, HAS_LAST=True, **ceilings)


KERNELS = [
    forward("bf16", 1, 32, ends=False, registers=144, instructions=80),
    forward("bf16", 1, 128, ends=False, registers=144, instructions=80),
    forward("fp32", 16, 64, ends=False, registers=255, instructions=115),
    forward("bf16", 16, 128, ends=False, registers=255, instructions=115),
    forward("bf16", 1, 32, ends=True, registers=128, instructions=65),
    pull("bf16", 1, 32, registers=144, instructions=65),
    gradients("bf16", 1, 32, registers=208, instructions=245),
    gradients("fp32", 1, 64, registers=208, instructions=240),
    gradients("bf16", 16, 32, registers=255, instructions=340),
    gradients("fp32", 16, 64, registers=255, instructions=340),
]
