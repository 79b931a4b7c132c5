"""The Triton kernels of cross scan and cross merge at the shapes of VMamba, as their launcher specialises them."""

from __future__ import annotations

from .triton_aot import AotKernel

MODULE = "vmamba_kernels.cross_scan.triton_kernels"
CROSS2D = 0 | 4 << 3 | 3 << 6 | 7 << 9  # rows, columns, and both reversed
NAMES = {"f": "channel-first", "l": "channel-last"}
STRIDES = [f"{side}_{axis}" for side in ("image", "sequences") for axis in "bkcl"]


def moves(
    dtype: str, layout: str, block: tuple[int, int, int], registers: int, instructions: float, *, merge: bool = False,
    one: bool = False, warps: int = 4,
) -> AotKernel:  # fmt: skip
    """Order cross2d; `layout` of image and sequences: f channel-first, l channel-last; H, W multiples of 8, C of 16."""
    dense = ["image_l" if layout[0] == "f" else "image_c", "sequences_l" if layout[1] == "f" else "sequences_c"]
    constant = dict.fromkeys(dense, 1) | ({} if one else {"image_k": 0})
    sizes = {name: "i32" for name in ("H", "W", "C", *STRIDES) if name not in constant}
    block_h, block_w, block_c = block
    from_to = f"{NAMES[layout[merge]]} to {NAMES[layout[not merge]]}"
    return AotKernel(
        f"{MODULE}:moves_kernel",
        {"image": f"*{dtype}", "sequences": f"*{dtype}", **sizes},
        {
            **constant, "K": 4, "MOVES": CROSS2D, "MERGE": merge, "ONE_BY_ONE": one, "FLOAT32": True,
            "ALONG_L": layout[1] == "f",
            "RUN_IMAGE_W": 8 if layout[0] == "f" else 1, "RUN_IMAGE_C": 16 if layout[0] == "l" else 1,
            "RUN_H": 8 if layout[1] == "f" else 1, "RUN_W": 8 if layout[1] == "f" else 1,
            "RUN_C": 16 if layout[1] == "l" else 1, "BLOCK_H": block_h, "BLOCK_W": block_w, "BLOCK_C": block_c,
        },
        registers=registers,
        elements=4 * block_h * block_w * block_c,
        instructions=instructions,
        num_warps=warps,
        divisible=tuple(name for name in sizes if name not in ("H", "W")),
        load_bits=128,
        store_bits=128,
        note=f"{'merge' if merge else 'scan'}{' one by one' if one else ''} {from_to}",
    )  # fmt: skip


def mapped(
    layout: str,
    block: tuple[int, int],
    registers: int,
    instructions: float,
    *,
    sums: bool = False,
    load_bits: int = 128,
) -> AotKernel:
    """A registered order of 4 sequences in bfloat16; `layout`: of source and target; L a multiple of 8, C of 16."""
    dense = ["source_l" if layout[0] == "f" else "source_c", "target_l" if layout[1] == "f" else "target_c"]
    constant = dict.fromkeys(dense, 1) | ({"target_k": 0} if sums else {"source_k": 0})
    strides = [f"{side}_{axis}" for side in ("source", "target") for axis in "bkcl"]
    sizes = {name: "i32" for name in ("L", "C", *strides) if name not in constant}
    block_l, block_c = block
    return AotKernel(
        f"{MODULE}:map_kernel",
        {"source": "*bf16", "target": "*bf16", "maps": "*i64", **sizes},
        {
            **constant, "K": 4, "SUM": sums, "FLOAT32": True, "RUN_SOURCE_C": 16 if layout[0] == "l" else 1,
            "RUN_L": 8 if layout[1] == "f" else 1, "RUN_C": 16 if layout[1] == "l" else 1,
            "BLOCK_L": block_l, "BLOCK_C": block_c,
        },
        registers=registers,
        elements=4 * block_l * block_c,
        instructions=instructions,
        divisible=tuple(name for name in sizes if name != "L"),
        load_bits=load_bits,
        store_bits=128,
        note=f"{'merge' if sums else 'scan'} {NAMES[layout[0]]} to {NAMES[layout[1]]}",
    )  # fmt: skip


KERNELS = [
    moves("bf16", "ll", (8, 8, 32), 40, 6),
    moves("bf16", "ll", (8, 8, 32), 56, 9.5, merge=True),
    moves("fp32", "ll", (8, 8, 32), 80, 10, merge=True),
    moves("bf16", "ll", (8, 8, 32), 48, 6.5, one=True),
    moves("bf16", "ll", (8, 8, 32), 40, 6.5, one=True, merge=True),
    moves("bf16", "ff", (32, 32, 2), 56, 9.5),
    moves("bf16", "ff", (32, 32, 2), 72, 13, merge=True),
    moves("bf16", "fl", (16, 16, 16), 40, 7, warps=8),
    moves("bf16", "lf", (16, 16, 16), 56, 12, warps=8),
    moves("bf16", "lf", (16, 16, 16), 112, 15, warps=8, merge=True),
    moves("bf16", "fl", (16, 16, 16), 56, 10, warps=8, merge=True),
    mapped("ll", (64, 32), 40, 5.5),
    mapped("ll", (64, 32), 56, 8, sums=True),
    mapped("ff", (512, 4), 80, 13.5, load_bits=64),
    mapped("fl", (64, 32), 80, 12, load_bits=64),
    mapped("lf", (64, 32), 48, 7),
]
