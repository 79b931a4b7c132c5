"""The Triton kernels of ss2d at the shapes of VMamba, as their launcher specialises them."""

from __future__ import annotations

from .triton_aot import AotKernel

FORWARD = "vmamba_kernels.ss2d.triton_forward:forward_kernel"
PULL = "vmamba_kernels.ss2d.triton_backward:pull_kernel"
JOIN = "vmamba_kernels.selective_scan.triton_chunks:join_kernel"
WEIGHTS = dict.fromkeys(("dt_weight", "A", "D", "delta_bias"), "*fp32")


def signature(tensors: dict[str, str], sizes: str, d_state: int) -> dict[str, str]:
    """Types of the run-time arguments; a d_state of 1 is known at compile time."""
    return {**tensors, **{name: "i32" for name in sizes.split() if name != "N" or d_state != 1}}


def constants(d_state: int, **values: object) -> dict[str, object]:
    return ({"N": 1} if d_state == 1 else {}) | values


def forward(dtype: str, d_state: int, channels: int, *, ends: bool, instructions: float) -> AotKernel:
    """y of one direction, added to that of those before it; or the states that chunks leave (`ends`)."""
    tensors = {"x": f"*{dtype}", "x_dbl": f"*{dtype}", **WEIGHTS, "maps": "*i64"}
    tensors |= dict.fromkeys(("states", "total", "carry", "raw", "y_before", "y"), "*fp32")
    sizes = "L C R N K chunk first_k x_batch x_position p_batch p_position y_batch y_position"
    return AotKernel(
        FORWARD,
        signature(tensors, sizes, d_state),
        constants(d_state, HAS_D=True, HAS_BIAS=True, ENDS=ends, ADD=not ends, T=16, BC=channels, RB=16),
        registers=255,
        elements=16 * channels,
        instructions=instructions,
        num_warps=channels // 32,
        divisible=() if d_state == 1 else ("N",),
        load_bits=0,
        store_bits=0,
    )


def pull(dtype: str, d_state: int, channels: int, *, instructions: float) -> AotKernel:
    """The gradient that chunks hand back."""
    tensors = {"x_dbl": f"*{dtype}", "dt_weight": "*fp32", "A": "*fp32", "delta_bias": "*fp32", "maps": "*i64"}
    tensors |= dict.fromkeys(("dy", "pulled", "total", "raw"), "*fp32")
    sizes = "L C R N K chunk p_batch p_position dy_batch dy_position"
    return AotKernel(
        PULL,
        signature(tensors, sizes, d_state),
        constants(d_state, HAS_BIAS=True, T=16, BC=channels, RB=16),
        registers=255,
        elements=16 * channels,
        instructions=instructions,
        num_warps=channels // 32,
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
        registers=128,
        divisible=() if d_state == 1 else ("N",),
        load_bits=0,
        store_bits=0,
    )


# Channels of a program: 32 at stage 1 of VMamba-T (96 channels), 64 at stage 2, 128 at stages 3 and 4. The kernels
# read no vectors, on purpose: a thread holds all steps of one channel.
KERNELS = [
    forward("bf16", 1, 32, ends=False, instructions=150),
    forward("bf16", 1, 64, ends=False, instructions=150),
    forward("bf16", 1, 128, ends=False, instructions=150),
    forward("fp32", 1, 128, ends=False, instructions=150),
    forward("bf16", 16, 32, ends=False, instructions=190),
    forward("bf16", 16, 128, ends=False, instructions=190),
    forward("bf16", 1, 32, ends=True, instructions=140),
    forward("bf16", 16, 128, ends=True, instructions=150),
    pull("bf16", 1, 32, instructions=130),
    join(1, reverse=False),
    join(16, reverse=True),
]
