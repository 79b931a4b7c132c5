"""The page on scaling: its sizes are those of a real step, its tables follow from them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from classification.config import load_config
from docs.generate import scaling
from vmamba.models.from_config import model_from_config


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_step_sends_each_gradient_once_in_float32(tiny_config, alone):
    config, _ = load_config(tiny_config())
    network = model_from_config(config, num_classes=10)
    model = DistributedDataParallel(network, broadcast_buffers=False)
    sent: list[int] = []

    def count(state, bucket):  # torch refuses annotations that are not yet evaluated
        sent.append(bucket.buffer().nbytes)
        done: torch.futures.Future = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    model.register_comm_hook(None, count)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 1, 8, 8)).float().sum()
    loss.backward()
    assert sum(sent) == 4 * sum(parameter.numel() for parameter in network.parameters())


def test_the_exchange_takes_as_long_as_its_slowest_link():
    exchange = scaling.Exchange(gradient_bytes=800, gpus=8)
    assert exchange.sent == 1400 and exchange.seconds(1.0) == 1400 / scaling.WITHIN_MACHINE
    wide = scaling.Exchange(gradient_bytes=800, gpus=64)
    assert wide.sent == 1575 and wide.seconds(100.0) == 15.75
    assert wide.seconds(1e15) == 1575 / scaling.WITHIN_MACHINE


def test_the_tables_have_a_row_for_each_model_and_size():
    for name in scaling.PUBLISHED_RATES:
        for text, rows in ((scaling.bytes_per_step(), 1), (scaling.cores(), 1), (scaling.epochs(), 1),
                           (scaling.same_batch_per_gpu(), 2), (scaling.same_batch(), 2)):  # fmt: skip
            assert text.count(f"| `{name}` |") == rows
    assert scaling.gradient_bytes("vmamba_tiny_s1l8") == 4 * 30_249_064
