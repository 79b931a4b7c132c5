"""The benchmarks compute what they say: shapes as the models have them, exact memory, agreement, named skips, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vmamba.host_memory import allocated_by, living

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "kernels" / "benchmarks"
MODULES = [path.stem for path in FOLDER.glob("*.py")]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of kernels/benchmarks, imported as its commands import one another."""
    monkeypatch.syspath_prepend(str(FOLDER))
    hidden = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    names = ("timing", "shapes", "peers", "tables", "report", "operator_runs", "selective_scan", "ss2d")
    names += ("causal_conv1d", "pooled_scan", "layers", "vim_block")
    yield SimpleNamespace(**{name: import_module(name) for name in names})
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(hidden)


@pytest.mark.parametrize(
    ("network", "published"),
    [
        ("vmamba_tiny", "vmamba_tiny_s1l8"),
        ("vmamba_base", "vmamba_base_s1l20"),
        ("vanilla_vmamba_tiny", "vanilla_vmamba_tiny"),
        ("vanilla_vmamba_base", "vanilla_vmamba_base"),
    ],
)
def test_shapes_are_those_of_the_models(bench, network: str, published: str) -> None:
    timm = pytest.importorskip("timm")
    models = import_module("vmamba.models")
    with torch.device("meta"):
        model = timm.create_model(published)
    scans = sorted(bench.shapes.scans([network], 224), key=lambda scan: scan.stage)
    for scan, layer, size in zip(scans, model.layers, model.stage_sizes(224), strict=True):
        mixer = next(module for module in layer.modules() if isinstance(module, models.SS2D))
        found = (scan.directions, scan.channels, scan.rank, scan.d_state, scan.height, scan.width)
        assert found == (mixer.k_group, mixer.d_inner, mixer.dt_rank, mixer.d_state, size, size)


def test_equal_scans_are_measured_once(bench) -> None:
    found = bench.shapes.scans(["vmamba_tiny", "vmamba_small"], 512)
    assert len(found) == 4 and set(found.values()) == {"vmamba_tiny, vmamba_small"}
    assert [scan.stage for scan in found] == [4, 3, 2, 1]


@pytest.fixture
def small(bench) -> Any:
    return bench.shapes.Scan(1, 3, 4, 8, 2, 3, 4)


def test_a_plain_block_of_vim_agrees_before_it_is_timed(bench) -> None:
    scan = bench.shapes.Scan(1, 1, 9, 32, 1, 4, 2)
    case = bench.operator_runs.Case("vim_block", "any", 9, scan, 2, "float32", "training")
    ours, *others = bench.vim_block.contenders(case, torch.device("cpu"))
    assert [c.name for c in others] == ["plain,our scan", "plain,mambapy"]
    wanted = ours.functions[0]()
    for contender in others:
        plain = contender.functions[0]()  # raises if the output or a gradient is another
        assert torch.allclose(plain(*contender.tensors), wanted(*ours.tensors), rtol=1e-4, atol=1e-5)
    names = [str(i) for i in range(len(ours.tensors))]
    wrong = {"output": lambda *x: wanted(*x) * 1.001, "gradient of 0": lambda x, *w: wanted(2 * x - x.detach(), *w)}
    for name, function in wrong.items():
        with pytest.raises(RuntimeError, match=f"its {name} is another: relative error"):
            bench.vim_block.agreeing(function, wanted, ours.tensors, names)


@pytest.mark.parametrize("mode", ["forward", "training"])
def test_peers_agree_with_the_operator(bench, small, mode: str) -> None:
    case = bench.operator_runs.Case("selective_scan", "any", 12, small, 2, "float32", mode)
    contenders = {c.name: c for c in bench.selective_scan.contenders(case, torch.device("cpu"))}
    results = {}
    for name in ("ours", "ours,time-first", "reference", "loop"):
        contender = contenders[name]
        torch.manual_seed(0)
        out = bench.operator_runs.step(contender.functions[0](), contender.tensors, mode)()
        results[name] = [out] if mode == "forward" else list(out)
    for name, found in results.items():
        for x, y in zip(found, results["ours"], strict=True):
            assert torch.allclose(x, y, rtol=1e-4, atol=1e-4), name


def test_the_mixers_of_ss2d_agree(bench, small) -> None:
    tensors = bench.ss2d.tensors(small, 2, torch.float32, torch.device("cpu"))
    wanted = bench.ss2d.ss2d(*tensors)
    assert torch.allclose(bench.ss2d.unfused(*tensors), wanted, rtol=1e-4, atol=1e-4)
    by_loop = bench.ss2d.unfused_by(bench.peers.sequential_loop)
    assert torch.allclose(by_loop(*tensors), wanted, rtol=1e-4, atol=1e-4)


def test_the_convolutions_and_the_pooled_scans_agree(bench) -> None:
    """Every contender that runs here, at a small grid; and the necessary bytes."""
    scan = bench.shapes.Scan(1, 3, 3, 6, 1, 2, 2)
    for benchmark in (bench.causal_conv1d.BENCHMARK, *bench.pooled_scan.BENCHMARKS):
        case = bench.operator_runs.Case(benchmark.operator, "any", 48, scan, 2, "float32", "forward")
        first, *others = benchmark.contenders(case, torch.device("cpu"))
        wanted = first.functions[0]()(*first.tensors)
        for other in others:
            if "compiled" not in other.name and "triton" not in other.name:
                found = other.functions[0]()(*other.tensors)
                assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4), (benchmark.operator, other.name)
        read = sum(x.nbytes for x in first.tensors if x.dim() > 2 and x.shape[0] == 2 and x.shape[-1] in (3, 9))
        assert benchmark.necessary_bytes(case) == read + wanted.nbytes
    assert {s.length for s in bench.shapes.tokens(["fastvim_tiny"], 224)} == {196}
    assert {s.length for s in bench.shapes.tokens(["vim_tiny"], 224)} == {197}


def test_the_layers_around_the_scans_agree(bench) -> None:
    image, sequence = bench.shapes.Scan(1, 3, 4, 6, 1, 1, 4), bench.shapes.Scan(1, 1, 9, 6, 1, 2, 2)
    for benchmark in bench.layers.BENCHMARKS:
        (scan,) = (scan for scan in (image, sequence) if benchmark.suits(scan))
        case = bench.operator_runs.Case(benchmark.operator, "any", 48, scan, 2, "float32", "forward")
        ours, plain = benchmark.contenders(case, torch.device("cpu"))[:2]
        wanted = plain.functions[0]()(*plain.tensors)
        assert torch.allclose(ours.functions[0]()(*ours.tensors), wanted, rtol=1e-4, atol=1e-5), benchmark.operator
        assert benchmark.necessary_bytes(case) == sum(x.nbytes for x in ours.tensors) + wanted.nbytes


def test_a_contender_skipped_at_first_is_no_yardstick(bench) -> None:
    title = {"operator": "any", "network": "any", "size": 9, "batch": 1, "dtype": "float32", "mode": "forward"}
    measured = {"peer": None, "ours": 2, "its": 3}
    rows = [{**title, "stage": 1, "contender": name, "ms": ms} for name, ms in measured.items()]
    wanted = ["| ours | 2.000 | 2.000 | 1.00 |", "| its | 3.000 | 3.000 | 1.50 |", "| peer | - | 0.000 | - |"]
    assert bench.tables.by_network(rows).splitlines()[-3:] == wanted


def test_the_products_of_a_step_are_counted_and_made_again(bench) -> None:
    pytest.importorskip("timm")
    floor = import_module("floor")
    ours = import_module("vmamba.models.convolution").Conv2d(16, 4, 2)
    layers = [torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 16, 3, groups=16), ours]
    layers += [torch.nn.Flatten(), torch.nn.Linear(4, 5)]
    with floor.Products() as recorded:
        torch.nn.Sequential(*layers)(torch.rand(2, 3, 6, 6)).sum().backward()
        q, k, v = torch.rand(3, 2, 1, 4, 8).unbind(0)
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
    counts = {name: sum(n for (op, _), n in recorded.calls.items() if op.startswith(name)) for name in ("conv", "mm")}
    assert counts == {"conv": 4, "mm": 2}  # dense only, forward and backward; the linear layer's two gradients
    assert sum(recorded.calls.values()) - 6 == 2  # its addmm, and the attention
    for call in recorded.calls:
        made = [way() for way in floor.contenders(call, torch.device("cpu")).values()]
        if call[0] in ("mm", "addmm"):
            assert all(torch.allclose(other, made[0], rtol=1e-5) for other in made)
        if call[0].endswith("backward"):  # the gradient of the weight, by PyTorch's operator and by ours
            assert len(made) == 2 and torch.allclose(made[0][1], made[1][1], rtol=1e-4)


@pytest.mark.slow
def test_the_compiled_peer_agrees(bench, small) -> None:
    tensors = bench.selective_scan.tensors(small, 2, torch.float32, torch.device("cpu"))
    compiled = bench.peers.compiled_associative_scan("generic")
    for mode in ("forward", "backward"):
        found, wanted = (bench.operator_runs.step(f, tensors, mode)() for f in (compiled, bench.selective_scan.ours))
        if mode == "forward":
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
        assert len(found) == len(wanted)


def test_peers_that_need_a_gpu_are_called_as_they_expect(bench, small, monkeypatch) -> None:
    """The adapters, around stand-ins of the same signatures."""
    tensors = bench.selective_scan.tensors(small, 2, torch.float32, torch.device("cpu"))
    wanted = bench.selective_scan.ours(*tensors)

    def chunk_hgrn(x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, None]:
        assert x.is_contiguous() and g.is_contiguous()
        h, steps = torch.zeros_like(x[:, 0]), []
        for step in range(x.shape[1]):
            h = torch.exp(g[:, step]) * h + x[:, step]
            steps.append(h)
        return torch.stack(steps, 1), None

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        assert z is None and delta_softplus
        return bench.peers.sequential_loop(u, delta, A, B, C, D, delta_bias)

    for name in ("fla", "fla.ops", "mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "fla.ops.hgrn", SimpleNamespace(chunk_hgrn=chunk_hgrn))
    interface = SimpleNamespace(selective_scan_fn=selective_scan_fn)
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", interface)
    for make in (bench.peers.flash_linear_attention, bench.peers.mamba_ssm):
        assert torch.allclose(make()(*tensors), wanted, rtol=1e-4, atol=1e-4)


class FakeEvent:
    """Stands for a CUDA event on a device that takes 2 ms for everything between two events."""

    clock = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeEvent.clock += 2.0
        self.at = FakeEvent.clock

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


def test_events_are_read_in_the_order_of_the_calls(bench, monkeypatch) -> None:
    slept, done = [], []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    clock = bench.timing.Clock("cpu", 0.05, 1.0)
    clock.cuda, clock.scrub = True, torch.ones(8)
    sample = clock.by_turns({"one": lambda: done.append(1)}, {"one": 0.002})["one"]
    assert sample.median == sample.fastest == pytest.approx(2e-3)
    assert sample.calls == 5 * 5 and len(done) == 5 * (5 + 1) and len(slept) == 5
    assert sample.host is not None and clock.scrub.sum() == 0


def run_once(bench, functions: dict[str, Any], **options: Any) -> dict[str, dict[str, Any]]:
    """The rows of one small case of the selective scan, by contender."""
    scan = bench.shapes.Scan(1, 1, 6, 4, 1, 2, 2)
    case = bench.operator_runs.Case("selective_scan", "any", 6, scan, 1, "float32", "forward")

    def contenders(case: Any, device: torch.device) -> list[Any]:
        given = bench.selective_scan.tensors(scan, 1, torch.float32, device)
        return [bench.operator_runs.Contender(name, (lambda f=f: f,), given) for name, f in functions.items()]

    benchmark = bench.operator_runs.Benchmark("selective_scan", contenders, bench.selective_scan.necessary_bytes)
    given = dict(device="cpu", seconds=0.001, longest=5.0, budget=60.0, contenders=None, json=None) | options
    report = bench.operator_runs.run("selective_scan", [(benchmark, case)], SimpleNamespace(**given))
    return {row["contender"]: row for row in report.rows}


def test_rows_say_what_was_measured_and_what_was_not(bench, monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(bench.operator_runs, "copy_bandwidth", lambda clock: 1e9)
    ours = bench.selective_scan.ours

    def fails(*arguments: torch.Tensor) -> torch.Tensor:
        raise ImportError("no module named peer")

    functions = {"ours": ours, "same": lambda *x: ours(*x) * 1, "other": lambda *x: ours(*x) + 1, "fails": fails}
    rows = run_once(bench, functions, json=tmp_path / "rows.json")
    assert rows["ours"]["times_ours"] == 1.0
    assert rows["same"]["ms"] > 0 and rows["same"]["of_copy"] > 0
    assert rows["ours"]["necessary_bytes"] == 4 * (3 * 2 * 4 * 6 + 2 * 2 * 2 * 6)
    assert rows["other"]["ms"] is None and "its output is another" in rows["other"]["skipped"]
    assert rows["fails"]["ms"] is None and "no module named peer" in rows["fails"]["skipped"]
    kept = json.loads((tmp_path / "rows.json").read_text())
    assert kept["rows"] == list(rows.values()) and {"device", "clocks", "torch"} <= kept["setting"].keys()
    said = capsys.readouterr().out
    assert "plan: 1 tables" in said and "method: " in said
    table = bench.tables.by_network(kept["rows"])
    assert "| other | - | 0.000 | - |" in table and "| stage 1 | sum | times ours |" in table


def test_a_failure_of_ours_is_told_and_the_others_go_on(bench, monkeypatch, capsys) -> None:
    monkeypatch.setattr(bench.operator_runs, "copy_bandwidth", lambda clock: 1e9)

    def breaks(*arguments: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("an illegal access")

    rows = run_once(bench, {"ours": breaks, "same": bench.selective_scan.ours})
    assert rows["ours"]["failed"] == "an illegal access"
    assert "FAILED: an illegal access" in capsys.readouterr().out


def test_a_used_up_budget_is_told(bench, monkeypatch) -> None:
    monkeypatch.setattr(bench.operator_runs, "copy_bandwidth", lambda clock: 1e9)
    rows = run_once(bench, {"ours": bench.selective_scan.ours}, budget=-1.0)
    assert "the budget of -1 s is used up" in rows["every contender"]["skipped"]


def test_slow_calls_are_refused(bench) -> None:
    clock = bench.timing.Clock("cpu", 0.01, -1.0)
    with pytest.raises(bench.timing.TooSlow):
        clock.warm_up(lambda: None)
    calls = {"one": 0, "two": 0}

    def count(name: str) -> Any:
        return lambda: calls.__setitem__(name, calls[name] + 1)

    samples = clock.by_turns({name: count(name) for name in calls}, {"one": 0.001, "two": 1.0})
    assert samples["one"].calls == calls["one"] == 10
    assert samples["two"].calls == calls["two"] == bench.timing.LEAST_TURNS


def test_the_count_of_memory_is_exact(bench) -> None:

    def step() -> None:
        kept = torch.empty(1000, dtype=torch.uint8)
        for size in (50_000, 70_000, 20_000):
            torch.empty(size, dtype=torch.uint8)
        del kept

    assert allocated_by(step) == 71_000
    model = torch.nn.Linear(10, 10)
    assert living(model, 2, torch.zeros(5)) == 3 * 440 + 20


def test_a_command_runs_to_its_end(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "ss2d.py"), "--device", "cpu", "--sizes", "32", "--batch", "1"]
    command += ["--stages", "4", "--networks", "vmamba_tiny", "--seconds", "0.001", "--contenders", "unfused"]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "", "OMP_NUM_THREADS": "1"}
    kept = tmp_path / "kept.json"
    done = subprocess.run([*command, "--json", str(kept)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(kept.read_text())["rows"]
    assert [(r["mode"], r["contender"]) for r in rows if r["ms"]] == [
        (mode, name) for mode in ("forward", "training") for name in ("ours", "unfused")
    ]
    assert "| unfused |" in done.stdout
