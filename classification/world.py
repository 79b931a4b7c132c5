"""The processes of a run: who I am, on which device, and how all of us agree."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from vmamba.devices import choose_device
from vmamba.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One process among `size`; `size` is 1 where torchrun did not start us. `peers` are (host, process id) by rank.

    `local_rank` is its number on its machine.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    peers: tuple[tuple[str, int], ...] = ()
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """True on the process that logs and writes."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of `tensor` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def highest(self, values: torch.Tensor) -> list[float]:
        """Return the highest of each of `values` over all processes."""
        values = values.to(torch.float32)
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, decide: Callable[[], T]) -> T:
        """Run `decide` on the first process; every process returns its answer or raises its `UserError`."""
        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = decide()
            except (UserError, FileNotFoundError) as error:
                if self.size == 1:
                    raise
                answer[1] = str(error)
        if self.size > 1:
            dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            if self.size > 1:
                dist.barrier()  # the first leaves only when all have the answer: torchrun ends the others then
            raise UserError(answer[1])
        return answer[0]

    def once_per_machine(self, act: Callable[[], object]) -> None:
        """Run `act` on the first process of each machine while the others wait; its `UserError` is raised on all.

        The first of all goes before the others, so that machines that share a disk find there what it has written.
        """
        self.from_first(act)
        refused = ""
        if self.local_rank == 0 and not self.first:
            try:
                act()
            except (UserError, FileNotFoundError) as error:
                refused = str(error)
        reasons = [reason for reason in self.gather(refused) if reason]
        if reasons:
            dist.barrier()  # as above
            raise UserError(reasons[0])

    def sync_buffers(self, module: torch.nn.Module) -> None:
        """Give every process the buffers of the first, which are those that a checkpoint holds.

        Batch norms count statistics of what their own process sees; without this each would evaluate another network.
        """
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def start_world(device: str = "auto", memory_share: float = -1.0, timeout: float = 1800.0) -> Iterator[World]:
    """Yield the `World` of this process, and leave the process group at the end.

    torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK) decides; without it there is one process. The GPU is chosen by
    LOCAL_RANK; on CPU the processes talk through gloo. A process that answers the others no more within `timeout`
    seconds is an error on them.
    """
    rank, size, local_rank = _environment("RANK", 0), _environment("WORLD_SIZE", 1), _environment("LOCAL_RANK", 0)
    world = World(rank, size, _choose_device(device, local_rank, memory_share), local_rank=local_rank)
    if size > 1:
        backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
        world = replace(world, peers=tuple(world.gather((socket.gethostname(), os.getpid()))))
    try:
        yield world
    finally:
        if size > 1:
            dist.destroy_process_group()


def _environment(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _choose_device(device: str, local_rank: int, memory_share: float) -> torch.device:
    if choose_device(device).type == "cpu":
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
            "lower --nproc_per_node or use --device cpu"
        )
    torch.cuda.set_device(local_rank)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True
    if 0 < memory_share < 1:
        torch.cuda.set_per_process_memory_fraction(memory_share, local_rank)
    return torch.device("cuda", local_rank)
