"""Whatever is wrong with what a command is given, and memory that runs out, is one clear line."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from analyze import report

COMMANDS = ("erf", "attention", "activation", "throughput", "flops", "scaling", "probe", "report")
WITH_IMAGES = ("erf", "attention", "activation", "report")
WITH_DATA = ("scaling", "probe", "report")
WITH_COUNT = tuple(dict.fromkeys(WITH_IMAGES + WITH_DATA))

# What is given besides the small model, and what the line says; SMALL and FOREIGN are files that the test brings.
CASES = {
    "model unknown": (COMMANDS, "--model vmamba_tiny_s1l9", "Did you mean 'vmamba_tiny_s1l8'"),
    "configuration missing": (COMMANDS, "--model none.yaml", "none.yaml"),
    "size too small": (COMMANDS, "--model SMALL --size 2", "does not run on images (1, 3, 2, 2)"),
    "size no number": (COMMANDS, "--model SMALL --size 0x9", "--size 0x9: give a positive number"),
    "weights missing": (COMMANDS, "--model SMALL --weights none.pth", "none.pth"),
    "weights damaged": (COMMANDS, "--model SMALL --weights text.png", "text.png"),
    "weights of another model": (COMMANDS, "--model test_resnet --weights FOREIGN", "does not fit"),
    "weights without a model": (COMMANDS, "--weights plain.pth", "plain.pth holds no configuration"),
    "device": (COMMANDS, "--model SMALL --device tpu", "--device tpu: it is auto, cpu"),
    "folder": (COMMANDS, "--model SMALL --out text.png/here", "--out text.png/here: it cannot be made"),
    "flag": (COMMANDS, "--modell SMALL", "Did you mean '--model'"),
    "images missing": (WITH_IMAGES, "--model SMALL --images none.png", "there is no image file or folder none.png"),
    "images none": (WITH_IMAGES, "--model SMALL --images empty", "empty: no image file lies in this folder"),
    "image damaged": (WITH_IMAGES, "--model SMALL --images text.png", "text.png cannot be read as an image"),
    "count": (WITH_COUNT, "--model SMALL --count 0", "--count: give at least 1"),
    "data missing": (WITH_DATA, "--model SMALL --data none", "holds no class folders"),
    "log missing": (("curves",), "none.csv", "none.csv"),
    "part unknown": (("gallery",), "--only nonsense", "nonsense"),
    "data without images": (WITH_DATA, "--model SMALL --data bare", "holds no images"),
}


@pytest.fixture
def place(tmp_path, monkeypatch, small_config, small_weights):
    """A folder to run in, with what the cases name."""
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no picture")
    Path("empty").mkdir()
    for split in ("train", "val"):
        (Path("bare") / split / "cat").mkdir(parents=True)
    torch.save({"model": {"weight": torch.ones(2)}}, "plain.pth")
    return {"SMALL": str(small_config), "FOREIGN": str(small_weights)}


def run(command: str, words: list[str]) -> int:
    return importlib.import_module(f"analyze.{command}").main(words)


def each(case: str, commands: tuple[str, ...]) -> list:
    """The case for every command; of those that share their words, all but the first, and flops, are slow."""
    fast = (commands[0], "flops")
    return [pytest.param(case, c, marks=() if c in fast else pytest.mark.slow, id=f"{case}-{c}") for c in commands]


@pytest.mark.parametrize("case, command", [param for case, (some, *_) in CASES.items() for param in each(case, some)])
def test_what_is_wrong_is_one_line(place, capsys, case, command):
    _, words, expected = CASES[case]
    if command == "scaling" and case == "count":
        words += " --data digits"
    assert run(command, [place.get(word, word) for word in words.split()]) == 2
    found = capsys.readouterr()
    assert found.err.startswith("error: ") and found.err.count("\n") == 1 and expected in found.err
    assert "method:" not in found.out


@pytest.fixture
def no_memory(monkeypatch):
    """Every convolution of real images finds no memory."""
    forward = nn.Conv2d.forward

    def fails(self, x):
        if isinstance(x, FakeTensor) or x.device.type == "meta":
            return forward(self, x)
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(nn.Conv2d, "forward", fails)


@pytest.mark.parametrize(
    "command",
    ["erf", "throughput", "probe", *(pytest.param(c, marks=pytest.mark.slow) for c in WITH_IMAGES[1:3] + ("scaling",))],
)
def test_memory_that_runs_out_is_one_line(place, capsys, no_memory, command):
    sizes = ["--sizes", "32", "48"] if command == "scaling" else []
    assert run(command, ["--model", place["SMALL"], *sizes]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory") and error.count("\n") == 1 and "give a smaller --size" in error


@pytest.mark.slow
def test_a_report_goes_on_where_memory_runs_out(place, no_memory, monkeypatch):
    every = report.tasks
    monkeypatch.setattr(report, "tasks", lambda *a: {k: v for k, v in every(*a).items() if k in ("erf", "flops")})
    Image.new("RGB", (40, 40)).save("grey.png")
    assert run("report", ["--model", place["SMALL"], "--images", "grey.png", "--quick", "--out", "out"]) == 0
    page = Path("out/report.html").read_text()
    assert "Effective receptive field is left out: out of memory" in page and "id='flops'" in page
