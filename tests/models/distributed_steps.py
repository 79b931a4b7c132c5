"""Run by test_distributed.py in each of two processes: one training step with DDP, and one with FSDP2, on the CPU.

Prints "same" for each if the step is that of a single process that sees the whole batch.
"""

from __future__ import annotations

import copy
import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from vmamba.models import VSSM

OPTIONS = dict(depths=(1, 1), dims=16, num_classes=5, ssm_d_state=1, norm_layer="ln2d", ssm_conv_bias=False)
OPTIONS |= dict(downsample_version="v3", patchembed_version="v2", drop_path_rate=0.0)


def step(model: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def verdict(model: nn.Module, expected: nn.Module, start: nn.Module) -> str:
    """ "same" if the steps of `model` and `expected` from `start` agree, else the parameter that agrees least."""
    parameters = zip(model.named_parameters(), expected.parameters(), start.parameters(), strict=True)
    for (name, found), wanted, before in parameters:
        taken, due = (p.detach() - before.detach() for p in (whole(found), wanted))
        error, size = float((taken - due).norm()), float(due.norm())
        if size == 0 or error > 1e-3 * size + 1e-5:
            return f"different in {name}: the step is off by {error} of {size}"
    return "same"


def main() -> int:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    start = VSSM(**OPTIONS)
    with torch.no_grad():
        for name, parameter in start.named_parameters():
            if name.endswith(("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight", "head.weight")):
                parameter.mul_(8)  # no gradient below the rounding of its parameter
    x, y = torch.randn(4, 3, 40, 33), torch.tensor([0, 1, 2, 3])
    mine = slice(2 * rank, 2 * rank + 2)
    expected = copy.deepcopy(start)
    step(expected, x, y)

    replicated = copy.deepcopy(start)
    step(DistributedDataParallel(replicated), x[mine], y[mine])
    print(f"DDP {verdict(replicated, expected, start)}", flush=True)

    sharded = copy.deepcopy(start)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for stage in sharded.layers:
        for block in stage.blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    step(sharded, x[mine], y[mine])
    print(f"FSDP2 {verdict(sharded, expected, start)}", flush=True)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    assert "RANK" in os.environ, "started by torchrun"
    sys.exit(main())
