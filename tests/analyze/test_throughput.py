"""Rates of steps whose time is known, by a clock that only they move; batches halved; tables; bad words."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from analyze import throughput
from analyze.rates import Protocol, Rate, measure, rows_of
from vmamba.host_memory import out_of_memory
from vmamba.steps import by_turns, training_step

CPU = torch.device("cpu")


class Sleeping(nn.Module):
    """A classifier that takes so many seconds a batch, by its own clock; more than `room` images do not fit.

    After `fails_at` batches there is room for half of the images that came then.
    """

    def __init__(self, clock: Clock, seconds: list[float], room: int = 1 << 20, fails_at: int = -1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.seconds, self.clock, self.room, self.calls, self.fails_at = seconds, clock, room, 0, fails_at

    def __deepcopy__(self, memo):
        return Sleeping(self.clock, self.seconds, self.room)

    def forward(self, x):
        if self.calls == self.fails_at:
            self.room, self.fails_at = len(x) // 2, -1
        if len(x) > self.room:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        self.clock.time += self.seconds[self.calls % len(self.seconds)]
        self.calls += 1
        return x.mean((2, 3)) * self.weight


class Clock:
    time = 5.0

    def __call__(self) -> float:
        return self.time


def rates(networks, protocol, clock, **options):
    return measure(networks, protocol, CPU, now=clock, with_memory=False, **options)


def test_a_sleeping_model_has_the_rate_of_its_sleep():
    clock = Clock()
    networks = {"slow": Sleeping(clock, [0.5]), "fast": Sleeping(clock, [0.125])}
    found = rates(networks, Protocol(batch=8, sizes=((4, 6),), warm_up=3, turns=4, steps=5), clock)
    assert found["slow"] == Rate(8, 16.0, 16.0, 16.0, 500.0, None)
    assert found["fast"] == Rate(8, 64.0, 64.0, 64.0, 125.0, None)
    assert [n.calls for n in networks.values()] == [3 + 4 * 5] * 2
    rows = rows_of(found, Protocol(batch=8, sizes=((4, 6),)))
    assert [row["times the first"] for row in rows] == [1.0, 4.0] and rows[0]["size"] == "4x6"


def test_median_and_spread_and_what_is_left_out():
    """One warm-up of 100 s, then turns of 1, 2 and 4 s: the warm-up is not in the figures."""
    clock = Clock()
    found = rates({"a": Sleeping(clock, [100, 1, 4, 2])}, Protocol(batch=2, warm_up=1, turns=3), clock)["a"]
    assert (found.median, found.least, found.most, found.milliseconds) == (1.0, 0.5, 2.0, 2000.0)


def test_the_networks_alternate():
    order: list[str] = []
    steps = {name: (lambda n=name: order.append(n)) for name in "ab"}
    assert by_turns(steps, CPU, 2, 1, lambda: 0.0) == {"a": [0.0, 0.0], "b": [0.0, 0.0]}
    assert order == ["a", "b", "a", "b"]


def test_a_batch_that_does_not_fit_is_halved_and_it_says_so():
    clock = Clock()
    networks = {"wide": Sleeping(clock, [1.0]), "narrow": Sleeping(clock, [1.0], room=5)}
    protocol = Protocol(batch=16)
    found = rates(networks, protocol, clock)
    assert (found["wide"].batch, found["wide"].halved) == (16, False)
    assert (found["narrow"].batch, found["narrow"].median, found["narrow"].halved) == (4, 4.0, True)
    assert rows_of(found, protocol)[1]["note"] == "batch halved from 16: out of memory"
    none = rates({"none": Sleeping(clock, [1.0], room=0)}, protocol, clock)["none"]
    assert "out of memory even for one image" in none
    assert rows_of({"none": none}, protocol)[0]["images/s"] is None
    assert out_of_memory(torch.OutOfMemoryError("CUDA")) and not out_of_memory(RuntimeError("shape"))


def test_memory_that_runs_out_in_a_turn_halves_that_network_alone():
    """Its turns start anew at the smaller batch; those of the other network are all kept."""
    clock = Clock()
    networks = {"grows": Sleeping(clock, [1.0], fails_at=4), "stays": Sleeping(clock, [2.0])}
    found = rates(networks, Protocol(batch=8, warm_up=2, turns=3), clock)
    assert found["grows"] == Rate(4, 4.0, 4.0, 4.0, 1000.0, None, halved=True)
    assert found["stays"] == Rate(8, 4.0, 4.0, 4.0, 2000.0, None)
    assert [n.calls for n in networks.values()] == [2 + 2 + 2 + 3, 2 + 3]
    none = rates({"one": Sleeping(clock, [1.0], fails_at=2), "stays": networks["stays"]}, Protocol(batch=1), clock)
    assert none["one"] == "out of memory even for one image of 224x224; give a smaller --size"
    assert none["stays"].median == 0.5


@pytest.mark.parametrize("mode", ["training", "training-without-optimizer"])
def test_training_steps(mode):
    """Sizes are taken in turn, the given network stays as it is, its copy changes with an optimizer alone."""
    clock = Clock()
    network = Sleeping(clock, [0.25])
    protocol = Protocol(mode, batch=2, sizes=((4, 4), (6, 8)), warm_up=2, turns=2, steps=2, amp="bfloat16")
    found = rates({"a": network}, protocol, clock)["a"]
    assert found.median == 8.0 and network.calls == 0 and torch.equal(network.weight, torch.ones(3))
    seen = []
    network.register_forward_pre_hook(lambda m, args: seen.append(tuple(args[0].shape[2:])))
    step = training_step(network, [torch.randn(2, 3, *size) for size in protocol.sizes], mode == "training")
    for _ in range(3):
        step()
    assert seen == [(4, 4), (6, 8), (4, 4)] and network.weight.grad is None
    assert torch.equal(network.weight, torch.ones(3)) == (mode != "training")


def test_the_peak_memory_is_exact():
    """Of y = x + 1 and z = y * 2, y and z live at once; weights, images and a few numbers come on top."""

    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(256))

        def forward(self, x):
            y = x + 1
            return y * 2

    found = measure({"a": Adds()}, Protocol(batch=4, sizes=((16, 16),)), CPU)["a"]
    images = 4 * 3 * 16 * 16 * 4
    assert found.memory * 2**20 == pytest.approx(3 * images + 1024, abs=64)


def test_the_command(tmp_path, capsys, small_config):
    argv = ["--model", str(small_config), "--compare", "test_resnet", "--batch", "2", "--sizes", "32"]
    argv += ["--modes", "inference", "training", "--warm-up", "1", "--turns", "1", "--out", str(tmp_path)]
    assert throughput.main([*argv, "--mixed-sizes", "32", "48"]) == 0
    about = json.loads((tmp_path / "throughput.json").read_text())
    rows = about["tables"]["Throughput"]
    assert len(rows) == 2 + 2 and all(row["images/s"] > 0 and row["peak MiB"] > 0 for row in rows)
    assert {row["size"] for row in rows} == {"32x32", "32x32, 48x48"}
    for word in ("synchronised", "warm-up", "TF32", "contiguous", "eager", "torch 2.", "median"):
        assert word in about["method"]
    assert about["method"] in capsys.readouterr().out
    assert (tmp_path / "throughput.png").exists() and "<svg" in (tmp_path / "throughput.svg").read_text()


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--batch", "0"], "--batch: give at least 1"),
        (["--modes", "train"], "invalid choice: 'train'"),
        (["--sizes", "axb"], "--size axb"),
        (["--compare", "resnet19"], "Did you mean 'resnet18'"),
        (["--warmup", "1"], "Did you mean '--warm-up'"),
    ],
)
def test_bad_words(tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    assert throughput.main(["--model", "test_resnet", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
