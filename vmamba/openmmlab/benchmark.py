"""Images per second of a whole model, from pixels to results: ``python -m vmamba.openmmlab.benchmark CONFIG``.

Random images and, without ``--checkpoint``, random weights: the time of what depends on how much is found, such as
pasting masks, is then that of an image with little in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm

from vmamba.command_line import Parser, parse_size
from vmamba.devices import choose_device
from vmamba.errors import UserError, exit_on_user_error
from vmamba.openmmlab.configs import read_config
from vmamba.openmmlab.flops import SIZES
from vmamba.openmmlab.models import empty_model, open_checkpoint, scope_of
from vmamba.openmmlab.running import add_config

_GPU_WARM_UP, _GPU_RUNS = 10, 50
_CPU_SECONDS, _CPU_RUNS = 5.0, 3


def random_batch(scope: str, batch: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return what a data loader of the library gives: `batch` random images [3, H, W] of bytes, and their samples."""
    if scope == "mmdet":
        from mmdet.structures import DetDataSample as Sample
    elif scope == "mmseg":
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmpretrain.structures import DataSample as Sample
    facts = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0), img_id=0)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(batch)]
    return dict(inputs=images, data_samples=[Sample(metainfo=facts) for _ in range(batch)])


def runs_per_second(call: Callable[[], object], device: torch.device) -> float:
    """Return the rate of `call`: 50 runs after 10 on a GPU, at least 3 runs and 5 seconds after one on a CPU."""
    on_gpu = device.type == "cuda"
    for _ in range(_GPU_WARM_UP if on_gpu else 1):
        call()
    if on_gpu:
        torch.cuda.synchronize()
    start, runs = time.perf_counter(), 0
    while runs < _GPU_RUNS if on_gpu else runs < _CPU_RUNS or time.perf_counter() - start < _CPU_SECONDS:
        call()
        runs += 1
    if on_gpu:
        torch.cuda.synchronize()
    return runs / (time.perf_counter() - start)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m vmamba.openmmlab.benchmark", description=__doc__)
    add_config(parser)
    parser.add_argument("--checkpoint", metavar="FILE", help="weights (default: random)")
    parser.add_argument("--size", metavar="HxW", type=parse_size, help="of the images (default: the published tables')")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at once (default 1)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default): a GPU when there is one")
    options = parser.parse(argv)
    if options.batch < 1:
        raise UserError(f"--batch {options.batch}: give at least 1")
    cfg, device = read_config(options.config, options.cfg_options), choose_device(options.device)
    scope = scope_of(cfg)
    size = options.size or SIZES[scope]
    if options.checkpoint:
        model = open_checkpoint(cfg, options.checkpoint, device)
    else:
        model = revert_sync_batchnorm(empty_model(cfg, "cpu")).to(device).eval()
    batch = random_batch(scope, options.batch, size)

    def step() -> None:
        with torch.no_grad():
            model.test_step(batch)

    rate = options.batch * runs_per_second(step, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    memory = f", {torch.cuda.max_memory_allocated(device) / 2**20:.0f} MB" if device.type == "cuda" else ""
    print(f"{rate:.4g} images/s: float32, batch {options.batch} of {size[0]}x{size[1]}, {name}{memory}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
