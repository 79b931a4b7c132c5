"""The Triton kernels of ss2d at the shapes of VMamba, as their launcher specialises them."""

from __future__ import annotations

from .triton_aot import AotKernel

FORWARD = "vmamba_kernels.ss2d.triton_forward:forward_kernel"
PULL = "vmamba_kernels.ss2d.triton_backward:pull_kernel"
GRADIENTS = "vmamba_kernels.ss2d.triton_backward:gradients_kernel"
PROJECT = "vmamba_kernels.ss2d.triton_dt:project_kernel"
PROJECT_BACK = "vmamba_kernels.ss2d.triton_dt:project_back_kernel"
JOIN = "vmamba_kernels.selective_scan.triton_chunks:join_kernel"
FP32 = "*fp32"


def signature(tensors: dict[str, str], sizes: str, d_state: int) -> dict[str, str]:
    """Types of the run-time arguments; a d_state of 1 is known at compile time."""
    return {**tensors, **{name: "i32" for name in sizes.split() if name != "N" or d_state != 1}}


def constants(d_state: int, **values: object) -> dict[str, object]:
    return ({"N": 1} if d_state == 1 else {}) | values


def scan(
    kernel: str, tensors: dict[str, str], sizes: str, d_state: int, channels: int, *, tile: int = 16,
    registers: int = 255, instructions: float, **constexprs: object,
) -> AotKernel:  # fmt: skip
    """A kernel that scans: a warp for each 32 channels, and a thread that holds all steps of a tile of one channel."""
    return AotKernel(
        kernel,
        signature(tensors, sizes, d_state),
        constants(d_state, **constexprs, T=tile, BC=channels),
        registers=registers,
        elements=tile * channels,
        instructions=instructions,
        num_warps=channels // 32,
        divisible=() if d_state == 1 else ("N",),
        load_bits=32,
        store_bits=32,
    )


def forward(
    dtype: str, d_state: int, channels: int, *, ends: bool, registers: int = 255, instructions: float
) -> AotKernel:
    """y of one direction, added to that of those before it; or the states that chunks leave (`ends`)."""
    tensors = {"x": f"*{dtype}", "x_dbl": f"*{dtype}", "A": FP32, "D": FP32, "maps": "*i64"}
    tensors |= dict.fromkeys(("states", "total", "carry", "raw", "y_before", "y"), FP32)
    sizes = "L C R N K images chunk first_k x_batch x_position p_batch p_position y_batch y_position"
    return scan(
        FORWARD, tensors, sizes, d_state, channels, registers=registers, instructions=instructions,
        HAS_D=True, ENDS=ends, ADD=not ends,
    )  # fmt: skip


def pull(dtype: str, d_state: int, channels: int, *, instructions: float) -> AotKernel:
    """The gradient that chunks hand back."""
    tensors = {"x_dbl": f"*{dtype}", "A": FP32, "maps": "*i64"}
    tensors |= dict.fromkeys(("dy", "pulled", "total", "raw"), FP32)
    sizes = "L C R N K chunk p_batch p_position dy_batch dy_position"
    return scan(PULL, tensors, sizes, d_state, channels, instructions=instructions)


def gradients(dtype: str, d_state: int, channels: int, *, registers: int = 255, instructions: float) -> AotKernel:
    """All gradients of one direction but those of the matrix product."""
    tensors = {"x": f"*{dtype}", "x_dbl": f"*{dtype}", "A": FP32, "D": FP32, "maps": "*i64"}
    tensors |= dict.fromkeys(("states", "dy", "pulled", "entered", "carry", "raw", "dx_before", "dx"), FP32)
    tensors |= dict.fromkeys(("dp", "dA", "dD"), FP32)
    sizes = "L C R N K chunk k x_batch x_position p_batch p_position dy_batch dy_position dx_batch dx_position"
    sizes += " dp_block dp_batch dp_direction dp_position"
    return scan(
        GRADIENTS, tensors, sizes, d_state, channels, tile=8, registers=registers, instructions=instructions,
        HAS_D=True, ADD=True,
    )  # fmt: skip


def product(kernel: str, dtype: str, d_state: int, *, registers: int) -> AotKernel:
    """A matrix product of 64 steps, forwards or back."""
    back = kernel is PROJECT_BACK
    before = {"draw": FP32} if back else {}
    after = dict.fromkeys(("ddt", "d_dt_weight", "dbias") if back else ("raw",), FP32)
    bias = {} if back else {"delta_bias": FP32}
    tensors = {**before, "x_dbl": f"*{dtype}", "dt_weight": FP32, **bias, "maps": "*i64", **after}
    sizes = "L C R N parts p_batch p_position" + (" d_batch d_position" if back else "")
    return AotKernel(
        kernel,
        signature(tensors, sizes, d_state),
        constants(d_state, HAS_BIAS=True, ROWS=64, BC=32 if back else 64, RB=16),
        registers=registers,
        num_warps=8 if back else 4,
        divisible=() if d_state == 1 else ("N",),
        load_bits=0,
        store_bits=0,
    )


def join(d_state: int, *, reverse: bool) -> AotKernel:
    tensors = dict.fromkeys(("slots", "A", "total", "last"), "*fp32")
    return AotKernel(
        JOIN,
        signature(tensors, "kept N KC", d_state),
        constants(d_state, REVERSE=reverse, HAS_LAST=False, SLOTS=16, CHANNELS=128),
        registers=96 if d_state == 1 else 104,
        divisible=() if d_state == 1 else ("N",),
        load_bits=32,
        store_bits=32,
    )


# Channels of a program: 32 at stage 1 of VMamba-T (96 channels), 64 at stage 2, 128 at stages 3 and 4. The kernels
# read no vectors, on purpose: a thread holds all steps of one channel.
KERNELS = [
    forward("bf16", 1, 32, ends=False, registers=200, instructions=95),
    forward("bf16", 1, 64, ends=False, instructions=100),
    forward("bf16", 1, 128, ends=False, instructions=100),
    forward("fp32", 1, 128, ends=False, instructions=100),
    forward("bf16", 16, 32, ends=False, instructions=130),
    forward("bf16", 16, 128, ends=False, instructions=130),
    forward("bf16", 1, 32, ends=True, instructions=80),
    forward("bf16", 16, 128, ends=True, instructions=95),
    pull("bf16", 1, 32, instructions=80),
    gradients("bf16", 1, 32, registers=208, instructions=265),
    gradients("bf16", 1, 128, registers=208, instructions=265),
    gradients("fp32", 1, 64, registers=208, instructions=265),
    gradients("bf16", 16, 32, instructions=320),
    gradients("bf16", 16, 128, instructions=325),
    gradients("fp32", 16, 64, instructions=320),
    product(PROJECT, "bf16", 1, registers=168),
    product(PROJECT, "fp32", 16, registers=168),
    product(PROJECT_BACK, "bf16", 1, registers=255),
    product(PROJECT_BACK, "fp32", 16, registers=255),
    join(1, reverse=False),
    join(16, reverse=True),
]
