"""Figures over sizes; accuracy on labelled folders; features in shards that a cut command finds again; probes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from analyze import probe, scaling
from analyze.crossover import crossovers
from analyze.labelled import Batches, labelled, top1
from analyze.linear import learning_rate, train_probe
from analyze.shards import read_shards, write_shards
from analyze.subject import open_subject
from vmamba.counting import count_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes, dark and light, 5 training and 3 held-out images of each."""
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 5), ("val", 3)):
        for value, name in ((30, "dark"), (220, "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((40, 36, 3), value + i, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def subject(small_config):
    return open_subject(str(small_config), None, (32, 48), "cpu")


def test_the_labels(data):
    found = labelled(data, "val")
    assert found.labels == [0, 0, 0, 1, 1, 1] and found.classes == ["dark", "light"]
    assert labelled(data, "val", ["light", "x", "dark"]).labels == [2, 2, 2, 0, 0, 0]
    assert labelled(data, "val", count=2).labels == [0, 1]
    train, held_out = (labelled(None, split) for split in ("train", "val"))
    assert len(train.images) + len(held_out.images) == 1797 and len(held_out.images) == 360
    with pytest.raises(ValueError, match="holds no class folders"):
        labelled(data, "test")


def test_accuracy_and_a_batch_that_does_not_fit(data, subject):
    class Brightness(nn.Module):
        def forward(self, x):
            if len(x) > 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            light = x.mean((1, 2, 3))
            return torch.stack([light * 0, light, light * 0 - 9], dim=1)

    subject.opened.network = Brightness()
    found = labelled(data, "val")
    assert top1(subject, found, 5) == (100.0, "batch halved from 5 to 2: out of memory")
    batches = Batches(subject, 1)
    assert batches.map(lambda x: x.mean((1, 2, 3)), found.images).shape == (6,) and batches.said() == ""


def test_scaling(tmp_path, data, small_config, capsys):
    argv = ["--model", str(small_config), "--sizes", "32", "48x64", "2", "--turns", "1", "--out", str(tmp_path)]
    assert scaling.main([*argv, "--data", str(data), "--count", "2"]) == 0
    about = json.loads((tmp_path / "scaling.json").read_text())
    small, large, none = about["tables"]["Sizes"]
    assert (small["size"], large["size"], none["size"]) == ("32x32", "48x64", "2x2")
    network = open_subject(str(small_config), None, None, "cpu").network
    assert small["GFLOPs"] == round(count_model(network, 32).gflops, 6) < large["GFLOPs"]
    assert small["images/s"] > 0 and large["peak MiB"] > small["peak MiB"] and 0 <= small["top-1"] <= 100
    assert "does not run on images (1, 3, 2, 2)" in none["note"]
    assert "top-1 on 2 images" in about["method"] and "<svg" in (tmp_path / "scaling.svg").read_text()


def test_where_one_model_overtakes_another():
    """Times of s^2 and of s^4 / 300^2 meet at 300 pixels a side, whichever sizes were measured."""
    laws = {"one": lambda s: s**-2.0, "steep": lambda s: 300**2 / s**4, "twice": lambda s: 2 * s**-2.0}
    sizes = {"200x200": 200, "300x1200": 600, "900x900": 900}
    rows = [{"model": m, "size": text, "images/s": f(s)} for m, f in laws.items() for text, s in sizes.items()]
    rows += [{"model": "absent", "size": "200x200", "note": "it does not run"}]
    found = {(row["model"], row["against"]): row for row in crossovers(rows)}
    first = found["one", "steep"]
    assert first["faster"] == "from about 300 pixels a side (interpolated between 200 and 600)"
    assert first["speed at the ends"] == "0.44 x to 9.00 x"
    assert found["one", "twice"]["faster"] == "at no size" and len(found) == 3
    assert found["steep", "twice"]["faster"].startswith("up to about 212 pixels a side")
    turned = crossovers([row for row in reversed(rows) if row["model"] != "steep"])
    assert [row["faster"] for row in turned] == ["at every size"]
    there_and_back = [("200x200", 1.0), ("400x400", 4.0), ("800x800", 1.0)]
    rows = [{"model": m, "size": t, "images/s": v} for t, s in there_and_back for m, v in (("one", s), ("two", 2.0))]
    said = "from about 283 pixels a side (interpolated between 200 and 400) and up to about 566 pixels a side"
    assert crossovers(rows)[0]["faster"].startswith(said)


def test_shards_are_made_once(tmp_path, data, subject):
    found = labelled(data, "train")
    assert write_shards(tmp_path, subject, found, "train", "me", 4, 4) == (3, "")
    features, labels = read_shards(tmp_path, "train")
    assert features.shape == (10, 16) and labels.tolist() == found.labels
    network = subject.network
    with torch.no_grad():
        x = subject.opened.read(found.images[7])[None]
        assert torch.allclose(network.get_classifier()(features[7:8]), network(x), atol=1e-5)
    (tmp_path / "train_00001.safetensors").unlink()
    assert write_shards(tmp_path, subject, found, "train", "me", 4, 4)[0] == 1
    assert torch.allclose(read_shards(tmp_path, "train")[0], features, atol=1e-6)
    for other in ({"fingerprint": "you", "size": 4}, {"fingerprint": "me", "size": 5}):
        with pytest.raises(ValueError, match="features of something else"):
            write_shards(tmp_path, subject, found, "train", other["fingerprint"], 4, other["size"])


def test_the_linear_probe():
    """Separable features are told apart; a head that fits is where it starts; rates are the published ones."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.eye(3)[labels] * 4 + 0.1 * torch.randn(60, 3, generator=generator)
    found, linear = train_probe((features, labels), (features, labels), 3, 0.5, epochs=20)
    assert found.before is None and found.last == found.best == 100.0 and len(found.scores) == 20
    right = nn.Linear(3, 3)
    right.weight.data, right.bias.data = torch.eye(3), torch.zeros(3)
    again, _ = train_probe((features, labels), (features, labels), 3, 0.05, right, epochs=1)
    assert again.before == 100.0 and torch.equal(right.weight, torch.eye(3))
    other, _ = train_probe((features, labels), (features, labels), 3, 0.05, nn.Linear(3, 7), epochs=1)
    assert other.before is None
    assert [learning_rate(side) for side in (224, 384, 512, 768, 1024, 16, 600)] == [
        0.05,
        0.05,
        0.2,
        0.5,
        0.5,
        0.05,
        0.5,
    ]


def test_the_command_goes_on_where_it_was(tmp_path, data, small_weights, capsys, monkeypatch):
    argv = ["--weights", str(small_weights), "--data", str(data), "--sizes", "32", "40x48", "--lr", "0.5"]
    argv += ["--shard", "4", "--out", str(tmp_path)]
    assert probe.main(argv) == 0
    first = json.loads((tmp_path / "probe.json").read_text())["tables"]["Linear probe"]
    assert [row["size"] for row in first] == ["32x32", "40x48"] and all(row["best top-1"] == 100 for row in first)
    assert first[0]["top-1 before"] is not None and first[0]["training images"] == 10
    assert (tmp_path / "features_40x48" / "classifier.safetensors").is_file()
    assert (tmp_path / "probe.png").stat().st_size > 5000 and "40x48" in (tmp_path / "probe.svg").read_text()
    monkeypatch.setattr(probe, "train_probe", lambda *a, **k: pytest.fail("the probe is trained again"))
    assert probe.main(argv) == 0
    assert json.loads((tmp_path / "probe.json").read_text())["tables"]["Linear probe"] == first


@pytest.mark.parametrize(
    "command, argv, words",
    [
        (scaling, ["--batch", "0"], "--batch, --turns: give at least 1"),
        (scaling, ["--sizes", "32", "--data", "none"], "none/val holds no class folders"),
        (probe, ["--data", "none"], "none/train holds no class folders"),
        (probe, ["--shard", "0"], "--shard: give at least 1"),
    ],
)
def test_bad_words(tmp_path, monkeypatch, capsys, small_config, command, argv, words):
    monkeypatch.chdir(tmp_path)
    assert command.main(["--model", str(small_config), *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
