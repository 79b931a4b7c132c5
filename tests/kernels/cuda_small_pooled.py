"""Small odd pooled scans through the CUDA ops and nothing else on the GPU: what compute-sanitizer runs.

Tensors are made on the host and copied, so that every kernel launched is ours and every byte read was written by a copy
or by our kernels.
"""

import torch

from vmamba_kernels import native

DEVICE = "cuda"
CHUNK = 32


def main() -> None:
    assert native.load(DEVICE).loaded, native.load(DEVICE).reason
    forward, backward = torch.ops.vmamba._pooled_scan, torch.ops.vmamba._pooled_scan_backward
    g = torch.Generator().manual_seed(0)
    for (outer, pool1, inner, pool2), width, groups, states, ratio, last, average in (
        ((14, 1, 1, 14), 40, 2, 16, 1, True, True), ((1, 3, 7, 1), 17, 2, 1, 1, True, True),
        ((1, 3, 7, 1), 17, 2, 1, 1, False, True), ((5, 1, 1, 3), 6, 2, 3, 1, False, False),
        ((3, 1, 2, 4), 33, 1, 2, 3, True, False), ((70, 1, 1, 2), 9, 2, 16, 1, True, True),
        ((2, 3, 4, 2), 12, 3, 4, 6, True, False),
    ):  # fmt: skip
        for dtype in (torch.float32, torch.bfloat16):

            def random(*shape: int, dtype=torch.float32) -> torch.Tensor:
                return torch.randn(shape, generator=g).to(dtype).to(DEVICE)

            steps, channels = outer * inner, groups * width
            tokens = steps * pool1 * pool2
            u_full = random(2, tokens, groups, width, dtype=dtype).permute(0, 2, 3, 1)
            dy = random(2, tokens, width if average else channels).transpose(1, 2)
            if not last:
                u_full = random(2, groups, width, tokens, dtype=dtype)
                dy = random(2, width if average else channels, tokens)
            u, delta = (random(2, steps, n, dtype=dtype).transpose(1, 2) for n in (channels, channels // ratio))
            A = (-torch.rand(channels, states, generator=g)).to(DEVICE)
            B, C = (random(2, groups, states, steps, dtype=dtype) for _ in range(2))
            inputs = (u_full, u, delta, A, B, C, random(channels), random(channels // ratio))
            options = (outer, pool1, inner, pool2, 2 if groups > 1 else 1, True, average, CHUNK)
            y, stored = forward(*inputs, *options, torch.float32, True)
            for result in (y, stored, *backward(dy, *inputs, stored, *options)):
                assert torch.isfinite(result.cpu()).all()
    print("all pooled scans ran")


if __name__ == "__main__":
    main()
