"""The report of a load: what the table says, and what fails."""

from __future__ import annotations

import math
import re

import pytest
import torch

from vmamba.models.vssm_layouts import in_layout
from vmamba.weights import WeightsDoNotFit, load_weights


def test_the_table_tells_every_kind(make, capsys):
    state = in_layout(make(imgsize=48, num_classes=7).state_dict(), "convolutions")
    state["extra.weight"] = torch.zeros(1)
    state["allowed.weight"] = torch.zeros(1)
    state["layers.0.blocks.0.ln_1.bias"] = state.pop("layers.0.blocks.0.norm.bias")
    state["layers.0.blocks.0.op.Ds"] = torch.zeros(3)
    del state["layers.1.blocks.0.op.Ds"], state["layers.1.blocks.1.op.Ds"]
    with pytest.raises(WeightsDoNotFit) as error:
        load_weights(
            make(),
            {"model": state},
            allow_head_mismatch=True,
            allow_missing=("layers.1.blocks.1.*",),
            allow_unexpected=("allowed.*",),
        )
    table = error.value.report.full_table(limit=2)
    assert table.splitlines()[0] == "the given dict into VSSM (entry 'model')"
    counts = re.findall(r"^(\w+(?: \w+)?) +(\d+) keys$", table, re.MULTILINE)
    found = {label: int(number) for label, number in counts}
    rows = table.splitlines()[1 + len(counts) :]
    reshaped = found.pop("reshaped")
    assert reshaped == 3 * 4 + 1
    assert found.pop("matched") == len(make().state_dict()) - 2 - 1 - 2
    assert found == {
        "renamed": 1,
        "resized": 1,
        "fresh head": 2,
        "kept": 1,
        "left out": 1,
        "missing": 1,
        "unexpected": 1,
        "mismatched": 1,
    }
    assert rows[0] == "renamed     layers.0.blocks.0.ln_1.bias -> layers.0.blocks.0.norm.bias"
    assert "resized     pos_embed [1, 8, 12, 12] -> [1, 8, 8, 8]" in rows
    assert f"reshaped    ... and {reshaped - 2} more" in rows
    assert "missing     layers.1.blocks.0.op.Ds" in rows and "kept        layers.1.blocks.1.op.Ds" in rows
    assert "unexpected  extra.weight" in rows and "left out    allowed.weight" in rows
    assert "mismatched  layers.0.blocks.0.op.Ds [3] in the file, [32] in the model" in rows
    assert str(error.value.report) in capsys.readouterr().err, "the table is printed where loading fails, too"


def test_only_the_first_process_prints(make, monkeypatch, capsys):
    source = make().state_dict()
    monkeypatch.setenv("RANK", "1")
    load_weights(make(), source)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    load_weights(make(), source)
    assert "missing          0 keys" in capsys.readouterr().err
    load_weights(make(), source, quiet=True)
    assert capsys.readouterr().err == ""


def test_another_class_count_fails_unless_allowed(make, capsys):
    source, target = make(num_classes=7), make(num_classes=5)
    fresh = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(WeightsDoNotFit, match=r"2 mismatched \(classifier.head.weight .*; only the head differs"):
        load_weights(target, source.state_dict())
    assert all(torch.equal(fresh[key], value) for key, value in target.state_dict().items())
    report = load_weights(target, source.state_dict(), allow_head_mismatch=True)
    assert report.head_dropped == ("classifier.head.bias", "classifier.head.weight") and report.clean
    assert torch.equal(target.state_dict()["classifier.head.weight"], fresh["classifier.head.weight"])


def test_another_size_fails_even_with_an_allowed_head(make):
    with pytest.raises(WeightsDoNotFit, match=r"missing \(layers.0.blocks.1.*mismatched \(layers.0.blocks"):
        load_weights(make(depths=[2, 2], ssm_ratio=2.0), make().state_dict(), allow_head_mismatch=True, quiet=True)


def cubic(row: torch.Tensor, size: int) -> torch.Tensor:
    """Return `row` enlarged by cubic convolution (a = -0.75) between pixel centres, edges repeated."""

    def weight(x: float, a: float = -0.75) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    values = []
    for index in range(size):
        at = (index + 0.5) * len(row) / size - 0.5
        taps = range(math.floor(at) - 1, math.floor(at) + 3)
        values.append(sum(weight(at - tap) * row[min(max(tap, 0), len(row) - 1)].item() for tap in taps))
    return torch.tensor(values)


def test_a_position_embedding_is_resized_by_cubic_convolution(make):
    source, target = make(imgsize=64), make(imgsize=(96, 128))
    across, down = torch.randn(16), torch.randn(16)
    with torch.no_grad():
        source.pos_embed.copy_((down[:, None] * across).expand_as(source.pos_embed))
    report = load_weights(target, source.state_dict(), quiet=True)
    assert report.resized == (("pos_embed", (1, 8, 16, 16), (1, 8, 24, 32)),)
    expected = cubic(down, 24)[:, None] * cubic(across, 32)
    assert torch.allclose(target.pos_embed.detach()[0, 3], expected, atol=1e-5)


def test_a_wrong_position_embedding_is_mismatched(make):
    state = make().state_dict()
    state["pos_embed"] = torch.zeros(1, 7, 5, 5)
    with pytest.raises(WeightsDoNotFit, match=r"mismatched \(pos_embed \[1, 7, 8, 8\] in the file"):
        load_weights(make(), state, quiet=True)
    state["pos_embed"] = torch.zeros(1, 64, 8)
    with pytest.raises(WeightsDoNotFit, match=r"mismatched \(pos_embed \[1, 64, 8\] in the file"):
        load_weights(make(), state, quiet=True)
    with pytest.raises(WeightsDoNotFit, match=r"1 unexpected \(pos_embed\)"):
        load_weights(make(posembed=False), make().state_dict(), quiet=True)
