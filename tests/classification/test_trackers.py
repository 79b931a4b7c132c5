"""Weights & Biases, MLflow and TensorBoard: they get the figures, and cannot stop a run whatever they do."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import threading
import types

import pytest

from classification import trackers
from classification.config import load_config
from classification.records import Records, read_metrics

ROWS = [{"epoch": epoch, "train_loss": 2.0 - epoch, "acc1": 50.0 + epoch, "ema_acc1": None} for epoch in range(3)]


class Refused(Exception):
    """What a package of its own raises."""


class Fake:
    """Stands in for both packages; notes what it is told, and raises at one of init, log and finish."""

    def __init__(self, fails: str = "", error: BaseException | None = None) -> None:
        self.fails, self.error = fails, error or Refused("no route to host\n  at port 1")
        self.started: list[dict] = []
        self.logged: list[tuple[dict, int]] = []
        self.finished = 0

    def _maybe_fail(self, place: str) -> None:
        if self.fails == place:
            raise self.error

    def start(self, **arguments) -> None:
        self._maybe_fail("init")
        self.started.append(arguments)

    def log(self, row: dict, step: int) -> None:
        self._maybe_fail("log")
        self.logged.append((row, step))

    def finish(self) -> None:
        self._maybe_fail("finish")
        self.finished += 1

    def wandb(self) -> types.ModuleType:
        module = types.ModuleType("wandb")

        def init(**arguments):
            self.start(**arguments)
            return types.SimpleNamespace(id=arguments["id"] or "w1", log=self.log, finish=self.finish)

        module.init = init
        return module

    def mlflow(self) -> types.ModuleType:
        module = types.ModuleType("mlflow")
        module.set_experiment = lambda name: None
        module.start_run = self.start
        module.active_run = lambda: types.SimpleNamespace(info=types.SimpleNamespace(run_id="m1"))
        module.log_dict = lambda values, name: None
        module.log_metrics = self.log
        module.end_run = self.finish
        return module


@pytest.fixture
def asked(monkeypatch, tmp_path, caplog):
    """Trains no network: writes ROWS from `start` on with one of the packages, a fake or None, in place."""

    def run(name: str, module: types.ModuleType | None, start: int = 0, rows: list[dict] = ROWS) -> list[str]:
        monkeypatch.setitem(sys.modules, name, module)
        config, _ = load_config(opts=[name.upper(), "a project", "TENSORBOARD", "False"])
        logger = logging.getLogger(f"test {name}")
        caplog.clear()
        records = Records(tmp_path, start, config, logger)
        for row in rows:
            records.add(row)
        records.close()
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    return run


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_every_epoch_arrives_once_and_a_resumed_run_goes_on(name, asked, tmp_path):
    fake = Fake()
    module = getattr(fake, name)()
    assert asked(name, module) == []
    assert [step for _, step in fake.logged] == [0, 1, 2] and fake.finished == 1
    assert fake.logged[1][0] == {"train_loss": 1.0, "acc1": 51.0}
    started = len(fake.started)
    more = [*ROWS[2:], {"epoch": 3, "train_loss": 0.5, "acc1": 60.0}]
    assert asked(name, module, start=2, rows=more) == []
    again = fake.started[started]
    assert again["id" if name == "wandb" else "run_id"] == {"wandb": "w1", "mlflow": "m1"}[name]
    steps = [step for _, step in fake.logged]
    # the service drops a step that is not new; MLflow would keep both
    assert steps == ([0, 1, 2, 2, 3] if name == "wandb" else [0, 1, 2, 3])
    assert again.get("resume", "allow") == "allow"
    assert [row["epoch"] for row in read_metrics(tmp_path / "metrics.csv")] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
@pytest.mark.parametrize("place", ["init", "log", "finish"])
@pytest.mark.parametrize("error", [Refused("no route to host\n  at port 1"), SystemExit(1)])
def test_a_failure_at_any_call_is_one_warning(name, place, error, asked, tmp_path):
    warnings = asked(name, getattr(Fake(place, error), name)())
    title = {"wandb": "Weights & Biases", "mlflow": "MLflow"}[name]
    reason = "no route to host at port 1" if isinstance(error, Refused) else "1"
    assert warnings == [f"{title} is off: {reason}; the run goes on without it"]
    assert len(read_metrics(tmp_path / "metrics.csv")) == 3


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_an_absent_package_is_one_warning(name, asked, tmp_path):
    (warning,) = asked(name, None)
    assert "is off" in warning and name in warning and len(read_metrics(tmp_path / "metrics.csv")) == 3


def test_a_server_that_never_answers_holds_nothing_up(asked, monkeypatch):
    monkeypatch.setattr(trackers, "SECONDS_TO_CLOSE", 0.2)
    release = threading.Event()
    fake = Fake()
    fake.log = lambda row, step: release.wait(30)
    try:
        (warning,) = asked("wandb", fake.wandb())
    finally:
        release.set()
    assert "has not answered" in warning and "Weights & Biases" in warning


def test_packages_that_nobody_asked_for_are_not_imported(monkeypatch, tmp_path):
    class Forbidden:
        def find_spec(self, name, *_):
            assert name.partition(".")[0] not in ("wandb", "mlflow"), name

    monkeypatch.setattr(sys, "meta_path", [Forbidden(), *sys.meta_path])
    config, _ = load_config(opts=["TENSORBOARD", "False"])
    assert trackers.open_trackers(tmp_path, config, 0, logging.getLogger("none")) == []
    with pytest.raises(AssertionError, match="wandb"):
        importlib.import_module("wandb")


def test_a_whole_run_with_a_tracker_that_fails(tiny_config, run_main, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", Fake("log").wandb())
    fake = Fake()
    monkeypatch.setitem(sys.modules, "mlflow", fake.mlflow())
    config = tiny_config(TRAIN__EPOCHS=1, TRAIN__WARMUP_EPOCHS=0)
    code, output, _ = run_main("--cfg", config, "--wandb", "p", "--mlflow", "e")
    assert code == 0 and output.count("is off") == 1 and "Weights & Biases is off: no route to host" in output
    ((row, step),) = fake.logged
    assert step == 0 and {"train_loss", "acc1", "ema_acc1", "lr"} <= row.keys() and "Traceback" not in output
    known = json.loads((tmp_path / "out" / "tiny" / "default" / "trackers.json").read_text())
    assert known == {"wandb": {"id": "w1"}, "mlflow": {"id": "m1", "epoch": 0}}
