"""The layers around the scans beside PyTorch's: ``python kernels/benchmarks/layers.py``.

At each stage of a VMamba, of C channels: "mlp", C to 4 C to C with GELU; "depthwise_silu", the 3 x 3 convolution of the
mixer, its bias and SiLU; "conv2d", the 3 x 3 convolution of stride 2 from C / 2 channels that leads there. In a Vim:
"rms_norm" of its tokens. All see channel-last float32 tensors. "torch" is PyTorch's own operators, "torch,compiled" the
same under torch.compile where it has anything to fuse. Necessary bytes: inputs and weights read and the output written
once; backward: these but the output and dy read, the gradients written. At the shapes of the published networks
(shapes.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from operator_runs import Benchmark, Case, Contender, main
from shapes import NETWORKS, Scan
from torch import Tensor

from vmamba_kernels import conv2d, depthwise_silu, mlp, rms_norm

# Where a scan has the channels of the layers around it, and the steps are the tokens.
KNOWN = [name for name in NETWORKS if name.startswith(("vmamba", "vim"))]
Layer = Callable[..., Tensor]
# name -> the sizes of its tensors, the first without the batch; the operator; PyTorch's way; whether that can be fused
LAYERS: dict[str, tuple[Callable[[Scan], list[tuple[int, ...]]], Layer, Layer, bool]] = {
    "mlp": (
        lambda s: [(s.height, s.width, s.channels), *_linear(s.channels, 4), *_linear(4 * s.channels, 1 / 4)],
        mlp,
        lambda x, w1, b1, w2, b2: F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2),
        False,
    ),
    "depthwise_silu": (
        lambda s: [(s.height, s.width, s.channels), (s.channels, 1, 3, 3), (s.channels,)],
        depthwise_silu,
        lambda x, w, b: F.silu(F.conv2d(x.permute(0, 3, 1, 2), w, b, padding=1, groups=len(w))).permute(0, 2, 3, 1),
        True,
    ),
    "conv2d": (
        lambda s: [(2 * s.height, 2 * s.width, s.channels // 2), (s.channels, s.channels // 2, 3, 3), (s.channels,)],
        partial(conv2d, stride=2, padding=1),
        lambda x, w, b: F.conv2d(x.permute(0, 3, 1, 2), w, b, stride=2, padding=1).permute(0, 2, 3, 1),
        False,
    ),
    "rms_norm": (
        lambda s: [(s.length, s.channels // 2), (s.channels // 2,)],
        partial(rms_norm, eps=1e-5),
        lambda x, w: F.rms_norm(x, w.shape, w, 1e-5),
        True,
    ),
}


def _linear(inputs: int, factor: float) -> list[tuple[int, ...]]:
    outputs = int(inputs * factor)
    return [(outputs, inputs), (outputs,)]


def sizes(case: Case) -> list[tuple[int, ...]]:
    """Of the tensors of a layer, x first."""
    x, *weights = LAYERS[case.operator][0](case.scan)
    return [(case.batch, *x), *weights]


def compiled(layer: Layer) -> Layer:
    """The layer under torch.compile, of one shape; without a reset it would stay eager after so many."""
    torch._dynamo.reset()
    return torch.compile(layer, dynamic=False)


def contenders(case: Case, device: torch.device) -> list[Contender]:
    make = torch.Generator(device).manual_seed(0)
    _, ours, plain, fusible = LAYERS[case.operator]
    given = [
        torch.randn(size, generator=make, device=device).div(max(1, size[1:].numel()) ** 0.5 if i else 1)
        for i, size in enumerate(map(torch.Size, sizes(case)))
    ]
    given = [x.to(getattr(torch, case.dtype)) for x in given]
    found = [Contender("ours", (lambda: ours,), given), Contender("torch", (lambda: plain,), given)]
    if fusible:
        found.append(Contender("torch,compiled", (lambda: compiled(plain),), given))
    return found


def necessary_bytes(case: Case) -> int:
    x, *weights = map(torch.Size, sizes(case))
    read = x.numel() + sum(w.numel() for w in weights)
    output = x.numel() // (2 if case.operator == "conv2d" else 1)  # a quarter of the places, twice the channels
    elements = {"forward": read + output, "backward": 2 * read + output, "training": 3 * read + 2 * output}[case.mode]
    return elements * torch.empty(0, dtype=getattr(torch, case.dtype)).element_size()


BENCHMARKS = [
    Benchmark(
        name, contenders, necessary_bytes, suits=lambda scan, name=name: (scan.directions == 2) == (name == "rms_norm")
    )
    for name in LAYERS
]

if __name__ == "__main__":
    main(BENCHMARKS, __doc__, ["vmamba_tiny", "vim_tiny"], KNOWN, name="layers", batch=[8], budget=300.0)
