"""The tables of epochs: whole after every write, without duplicates after a resume, readable by others."""

from __future__ import annotations

import json
import logging

import pytest

from classification.config import load_config
from classification.curves import draw_curves
from classification.records import Records, read_metrics
from vmamba.errors import UserError


def row(epoch: int, loss: float) -> dict:
    return {"epoch": epoch, "lr": 0.1, "train_loss": loss, "val_loss": 1.0, "acc1": 50.0, "acc5": 90.0}


@pytest.fixture
def records(tmp_path):
    config, _ = load_config(opts=["TENSORBOARD", "False"])
    return lambda start: Records(tmp_path, start, config, logging.getLogger("records"))


def test_csv_and_lines_hold_the_same_and_replace_what_is_trained_again(records, tmp_path):
    first = records(0)
    for epoch in range(3):
        first.add(row(epoch, 3.0 - epoch))
    second = records(2)
    for epoch in (2, 3):
        second.add(row(epoch, 0.5))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    table = read_metrics(tmp_path / "metrics.csv")
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3] == [line["epoch"] for line in table]
    assert [line["train_loss"] for line in lines] == [3.0, 2.0, 0.5, 0.5] == [line["train_loss"] for line in table]
    assert not list(tmp_path.glob(".*"))


def test_json_lines_know_no_nan(records, tmp_path):
    records(0).add({**row(0, float("nan")), "grad_norm": float("inf"), "ema_acc1": None})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert found == {"epoch": 0, "lr": 0.1, "val_loss": 1.0, "acc1": 50.0, "acc5": 90.0}


@pytest.mark.parametrize("text", ["epoch,lr\none,two\n", "\0\0\0", "lr\n1\n"])
def test_a_damaged_table_costs_a_warning_and_not_the_run(records, tmp_path, text, caplog):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match="no table of epochs"):
        draw_curves(tmp_path)
    records(1).add(row(1, 2.0))
    assert sum("starts afresh" in message for message in caplog.messages) == 1
    assert [line["epoch"] for line in read_metrics(tmp_path / "metrics.csv")] == [1]


def test_a_disk_that_refuses_costs_a_warning(records, tmp_path, monkeypatch, caplog):
    table = records(0)
    table.add(row(0, 2.0))
    before = (tmp_path / "metrics.csv").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    table.add(row(1, 1.0))
    monkeypatch.undo()
    assert any("the run goes on without it" in message for message in caplog.messages)
    assert (tmp_path / "metrics.csv").read_bytes() == before and not list(tmp_path.glob(".*.tmp-*"))
    table.add(row(2, 0.5))
    assert [line["epoch"] for line in read_metrics(tmp_path / "metrics.csv")] == [0, 1, 2]
