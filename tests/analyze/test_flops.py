"""The command's counts are the published ones, and its parts and layers add up to them."""

from __future__ import annotations

import json

import pytest

from analyze import flops
from vmamba.counting import count_model
from vmamba.summary import build_on_meta

# Source: the tables of github.com/MzeroMiko/VMamba, reproduced; parameters and billions of MACs at 224 x 224.
PUBLISHED = {
    "vanilla_vmamba_tiny": (22_893_448, 5.6269),
    "vmamba_tiny_s1l8": (30_249_064, 4.905610),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("flops")
    first, *others = PUBLISHED
    argv = ["--model", first, "--compare", *others, "--out", str(out)]
    assert flops.main(argv) == 0
    return out


def test_the_published_figures(found):
    tables = json.loads((found / "flops.json").read_text())["tables"]
    rows = {(row["model"], row["size"]): row for row in tables["Models"]}
    for name, (parameters, gflops) in PUBLISHED.items():
        row = rows[name, "224x224"]
        assert row["parameters"] == parameters
        assert round(row["GFLOPs"], 4 if name.startswith("vanilla") else 6) == gflops
        stages, layers = tables[f"Parts of {name}"], tables[f"Layers of {name} at 224x224"]
        assert sum(r["GFLOPs"] for r in stages) == pytest.approx(row["GFLOPs"], abs=1e-6)
        assert sum(r["parameters"] for r in stages) == parameters
        assert abs(sum(r["MACs"] for r in layers) - row["GFLOPs"] * 1e9) < 1000
    assert {"layers.0", "patch_embed"} <= {r["part"].rpartition(".blocks")[0] or r["part"] for r in stages}
    assert (found / "flops.png").exists() and "<svg" in (found / "flops.svg").read_text()


def test_a_checkpoint_is_counted_by_itself(tmp_path, small_weights, small_config):
    assert flops.main(["--weights", str(small_weights), "--out", str(tmp_path), "--sizes", "32", "64"]) == 0
    rows = json.loads((tmp_path / "flops.json").read_text())["tables"]["Models"]
    model, _ = build_on_meta(str(small_config))
    assert [row["GFLOPs"] for row in rows] == [round(count_model(model, size).gflops, 6) for size in (32, 64)]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--model", "vmamba_tiny"], "unknown model 'vmamba_tiny'. Did you mean"),
        (["--model", "vanilla_vmamba_tiny", "--sizes", "3"], "does not run on images (1, 3, 3, 3)"),
    ],
)
def test_bad_words(tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    assert flops.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
