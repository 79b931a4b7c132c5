"""Several processes: the network replicated (DDP) or sharded (FSDP2), and its state as if it were whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from yacs.config import CfgNode

from classification.averaging import Average
from classification.world import World
from vmamba.errors import UserError

PARALLEL = ("ddp", "fsdp2")


def synchronised(config: CfgNode, network: nn.Module, world: World) -> nn.Module:
    """Return `network`, with ``TRAIN.SYNC_BN`` its batch norms made to share their statistics; on GPUs only."""
    if config.TRAIN.SYNC_BN and world.size > 1 and world.device.type == "cuda":
        return convert_sync_batchnorm(network)
    return network


def start_alike(network: nn.Module, world: World) -> None:
    """Give every process the weights and buffers that the first one drew."""
    if world.size > 1:
        for parameter in network.parameters():
            torch.distributed.broadcast(parameter.detach(), src=0)
    world.sync_buffers(network)


def parallelise(config: CfgNode, network: nn.Module, average: Average | None, world: World) -> nn.Module:
    """Return what a training step calls: `network` itself in one process, else its DDP wrapper or its sharded self.

    ``fsdp2`` shards the parameters of `network` and of the `average` in place, block by block. They stay float32, for
    the scan's parameters need it; autocast chooses the type of the arithmetic, as it does for ``ddp``.
    """
    if world.size == 1:
        return network
    if config.TRAIN.PARALLEL == "fsdp2":
        if config.EMA.ENABLE and config.EMA.FORCE_CPU and world.device.type != "cpu":
            raise UserError("EMA.FORCE_CPU keeps a whole copy, TRAIN.PARALLEL fsdp2 shards it; choose one of them")
        shard(network, world)
        if average is not None:
            shard(average.network, world)
        return network
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False)


def without_effect(config: CfgNode, world: World) -> list[str]:
    """Return one line for each setting that these processes cannot follow."""
    lines = []
    if config.TRAIN.PARALLEL != "ddp" and world.size == 1:
        lines.append("TRAIN.PARALLEL has no effect: there is one process")
    if config.TRAIN.SYNC_BN and (world.size == 1 or world.device.type != "cuda"):
        lines.append("TRAIN.SYNC_BN has no effect: it is for several processes on GPUs")
    return lines


def shard(network: nn.Module, world: World) -> None:
    """Shard `network` over all processes, in place. It still loads whole state dicts, the same on every process."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in blocks_of(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    network.register_load_state_dict_pre_hook(_distribute_weights)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks that the network's `group_matcher` tells, in order; none where it tells none."""
    matcher = getattr(network, "group_matcher", None)
    found = matcher(coarse=False).get("blocks", ()) if callable(matcher) else ()
    entries = [(found, None)] if isinstance(found, str) else [e if isinstance(e, tuple) else (e, None) for e in found]
    # an entry with a group of its own is no block but what goes with one, such as a norm
    patterns = [re.compile(pattern.removeprefix("^")) for pattern, group in entries if group is None]
    return [module for name, module in network.named_modules() if any(p.fullmatch(name) for p in patterns if name)]


def shard_optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    """Let the optimizer of a sharded network load whole state dicts; that of another network can anyway."""
    if isinstance(network, FSDPModule):
        optimizer.register_load_state_dict_pre_hook(_distribute_moments)


def gathered(state: Any, keep: bool = True) -> Any:
    """Return nested state with every shard made whole, in CPU memory; all processes must take part.

    Where `keep` is false, on the processes that write nothing, the tensors that were made whole are left out.
    """
    if isinstance(state, DTensor):
        whole = state.full_tensor()
        return whole.cpu() if keep else None
    if isinstance(state, Mapping):
        return {key: gathered(value, keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value, keep) for value in state)
    return state


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: its shard, or all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def whole_on_every_process(network: nn.Module) -> Iterator[None]:
    """Hold a sharded network's weights whole for a while, so that processes may call it a different number of times."""
    shards = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
            module.set_reshard_after_forward(module is not network, recurse=False)


def without_synchronising(model: nn.Module) -> AbstractContextManager:
    """Return the context of a step whose gradient the processes do not exchange yet."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return _gradients_kept(model) if isinstance(model, FSDPModule) else nullcontext()


@contextmanager
def _gradients_kept(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def _like(value: Any, own: Any) -> Any:
    """Return `value` sharded as the tensor `own` is; every process holds all of it, so nothing is sent."""
    if isinstance(own, DTensor) and isinstance(value, Tensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    return value


def _distribute_weights(network: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, own in network.state_dict().items():
        if prefix + name in state_dict and state_dict[prefix + name].shape == own.shape:
            state_dict[prefix + name] = _like(state_dict[prefix + name], own)


def _distribute_moments(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for index, moments in state_dict["state"].items():
        own = parameters[index] if index < len(parameters) else None
        fits = {k for k, v in moments.items() if isinstance(v, Tensor) and own is not None and v.shape == own.shape}
        state[index] = {key: _like(value, own) if key in fits else value for key, value in moments.items()}
    return {**state_dict, "state": state}
