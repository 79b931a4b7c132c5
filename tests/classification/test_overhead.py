"""The comparison of the loops compares the same work, and its table says what was run."""

from __future__ import annotations

import dataclasses
import logging
import re

import pytest
import torch
from torch import nn

from classification import overhead
from classification.build import build_trainer
from classification.config import load_config
from classification.data import build_data
from classification.loader_rate import main as rate_main
from classification.train import train_one_epoch
from classification.world import World
from vmamba.photographs import AREA, photographs


def test_both_loops_train_the_same_weights_where_nothing_is_clipped():
    case = overhead.CASES["digits"]
    settings = [*case.settings, *overhead._PLAIN, "DATA.NUM_WORKERS", "0", "DATA.BATCH_SIZE", "300"]
    settings += ["TRAIN.CLIP_GRAD", "None", "TRAIN.WARMUP_EPOCHS", "0"]
    config, stated = load_config(opts=settings)
    world = World()
    data = build_data(config, stated, world)
    networks = []
    for loop in ("ours", "bare"):
        torch.manual_seed(0)
        network = overhead.one_layer(config)
        trainer = build_trainer(config, network, data, world, logging.Logger("quiet"))
        if loop == "ours":
            train_one_epoch(trainer, data.train, 0, lambda text: None)
        else:
            data.train.sampler.set_epoch(0)
            # the schedule is ours; at the start of a cosine it is flat to 1e-5
            overhead.bare_epoch(network, data.train, trainer.optimizer, trainer.criterion, world.device)
        networks.append(network)
    ours, bare = (nn.utils.parameters_to_vector(network.parameters()) for network in networks)
    torch.manual_seed(0)
    start = nn.utils.parameters_to_vector(overhead.one_layer(config).parameters())
    assert (ours - start).abs().max() > 1e-4
    torch.testing.assert_close(ours, bare, rtol=0, atol=1e-6)


def test_the_table_has_a_row_for_each_loader(monkeypatch, capsys):
    small = {
        "digits": dataclasses.replace(overhead.CASES["digits"], batch=600),
        "photographs": dataclasses.replace(overhead.CASES["photographs"], batch=2, images=6),
    }
    monkeypatch.setattr(overhead, "CASES", small)
    assert overhead.main(["--device", "cpu", "--repeats", "1"]) == 0
    output = capsys.readouterr().out
    row = r"^(\w+), .*? +(\d+) +(\d+) +(\d+\.\d{3}) +(\d+\.\d{3}) +(-?\d+) us$"
    rows = re.findall(row, output, re.MULTILINE)
    assert [found[0] for found in rows] == ["digits", "photographs"]
    assert all(float(figure) > 0 for found in rows for figure in found[1:5])
    assert "Train:" not in output


def test_the_ratio_is_that_of_the_medians():
    ours, bare = [(2.0, 1.0), (4.0, 2.5), (100.0, 3.0)], [(1.0, 0.9), (3.0, 2.0), (50.0, 9.0)]
    found = overhead.Measured(ours, bare, images=400, steps=10)
    assert found.row("title").split() == ["title", "100", "133", "0.750", "0.900", "10000", "us"]


def test_the_rate_of_a_loader_is_measured_on_photographs(capsys):
    for picture in photographs().values():
        assert picture.width * picture.height == pytest.approx(AREA, rel=0.01) and picture.mode == "RGB"
    assert rate_main(["--images", "6", "--turns", "1", "--size", "64"]) == 0
    output = capsys.readouterr().out
    rates = [int(rate) for rate in re.findall(r" +(\d+) \(\d+ to \d+\)$", output, re.MULTILINE)]
    assert len(rates) == 4 and rates[0] > max(rates[1:]) / 2 and "6 photographs" in output
