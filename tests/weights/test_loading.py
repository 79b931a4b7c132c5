"""Weights into models: strict, with a report; the head may differ when asked."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from vmamba.models.head_norm import norm_head
from vmamba.models.vssm import VSSM
from vmamba.weights import CheckpointError, load_weights, save_checkpoint
from vmamba.weights.loading import WeightsDoNotFit


def small(num_classes: int = 5, **more) -> VSSM:
    settings = {
        "dims": [8, 16],
        "depths": [1, 1],
        "ssm_d_state": 1,
        "ssm_ratio": 1.0,
        "mlp_ratio": 1.0,
        "patch_size": 4,
    }
    return VSSM(num_classes=num_classes, **{**settings, **more})


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("wrap", ["bare", "model", "state_dict", "ddp", "compiled"])
def test_every_usual_layout_loads(wrap):
    source, target = small(), small()
    state = source.state_dict()
    payload = {
        "bare": state,
        "model": {"model": state, "epoch": 3},
        "state_dict": {"state_dict": state, "meta": {}},
        "ddp": {"model": {f"module.{key}": value for key, value in state.items()}},
        "compiled": {"model": {f"_orig_mod.{key}": value for key, value in state.items()}},
    }[wrap]
    report = load_weights(target, payload)
    assert report.clean and len(report.matched) == len(state) and equal(source, target)


def test_from_a_file_and_ema_entry(tmp_path):
    plain, averaged, target = small(), small(), small()
    save_checkpoint(tmp_path / "c.pth", {"model": plain.state_dict(), "model_ema": averaged.state_dict()})
    load_weights(target, tmp_path / "c.pth")
    assert equal(target, plain)
    load_weights(target, tmp_path / "c.pth", prefer_ema=True)
    assert equal(target, averaged)
    with pytest.raises(CheckpointError, match="has no entry 'swa'; it has model, model_ema"):
        load_weights(target, tmp_path / "c.pth", entry="swa")


def test_prefer_ema_falls_back_to_the_model():
    source, target = small(), small()
    load_weights(target, {"model": source.state_dict()}, prefer_ema=True)
    assert equal(source, target)


def test_wrong_size_raises_with_a_table_and_leaves_the_model_alone():
    target = small(dims=[16, 32], depths=[2, 1])
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(WeightsDoNotFit, match=r"^a.pth does not fit VSSM: \d+ keys matched, .*missing .*mism") as error:
        load_weights(target, {"model": {**small().state_dict(), "extra.weight": torch.zeros(1)}}, source_name="a.pth")
    table = error.value.report.table()
    assert "missing     layers.0.blocks.1." in table
    assert "unexpected  extra.weight" in table
    assert "mismatched  patch_embed.0.weight [8, 3, 4, 4] in the file, [16, 3, 4, 4] in the model" in table
    assert "... and" in table and len(table.splitlines()) <= 3 * 9
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


@pytest.mark.parametrize("kind", ["vssm", "timm"])
def test_head_mismatch_must_be_allowed_and_drops_only_the_head(kind):
    if kind == "vssm":
        source, target, head = small(7), small(5), "classifier.head."
    else:
        source, target = (timm.create_model("test_resnet", num_classes=n) for n in (7, 5))
        head = "fc."
    fresh = {key: value.clone() for key, value in target.state_dict().items() if key.startswith(head)}
    with pytest.raises(WeightsDoNotFit, match="only the head differs: --allow-head-mismatch"):
        load_weights(target, source.state_dict())
    report = load_weights(target, source.state_dict(), allow_head_mismatch=True)
    assert set(report.head_dropped) == set(fresh) and len(fresh) == 2
    for key, value in target.state_dict().items():
        assert torch.equal(value, fresh[key] if key in fresh else source.state_dict()[key]), key


def test_allow_head_mismatch_keeps_a_head_that_fits_and_forgives_nothing_else():
    source, target = small(), small()
    report = load_weights(target, source.state_dict(), allow_head_mismatch=True)
    assert report.head_dropped == () and equal(source, target)
    with pytest.raises(WeightsDoNotFit, match="missing"):
        load_weights(small(7, depths=[2, 1]), source.state_dict(), allow_head_mismatch=True)


@pytest.mark.parametrize("allow", [False, True])
def test_what_a_normed_head_adds_may_be_missing_and_starts_afresh_with_the_head(allow):
    """Weights of a plain head fill a normed one; those of a normed head of other classes leave all of it fresh."""
    plain, normed = small(), norm_head(small())
    added = {f"classifier.head.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    report = load_weights(normed, plain.state_dict(), allow_head_mismatch=allow)
    assert report.clean and set(report.kept) == added and report.head_dropped == ()
    assert torch.equal(normed.classifier.head.weight, plain.classifier.head.weight)
    normed.classifier.head.norm.running_mean += 1
    again = norm_head(small())
    assert load_weights(again, normed.state_dict(), allow_head_mismatch=allow).kept == ()
    assert again.classifier.head.norm.running_mean.eq(1).all()
    if allow:
        other = norm_head(small(7))
        dropped = load_weights(other, normed.state_dict(), allow_head_mismatch=True).head_dropped
        assert set(dropped) == added | {"classifier.head.weight", "classifier.head.bias"}
        assert other.classifier.head.norm.running_mean.eq(0).all()
    with pytest.raises(WeightsDoNotFit, match="unexpected .classifier.head.norm.running_mean"):
        load_weights(small(), normed.state_dict())


def test_old_names_are_reported():
    source, target = small(), small()
    old = {
        key.replace(".op.", ".self_attention.").replace("classifier.head", "head"): value
        for key, value in source.state_dict().items()
    }
    report = load_weights(target, {"model": old})
    assert ("head.weight", "classifier.head.weight") in report.renamed and equal(source, target)


def test_pos_embed_is_resized_and_reported():
    source, target = small(posembed=True, imgsize=32), small(posembed=True, imgsize=48)
    report = load_weights(target, source.state_dict())
    assert report.resized == (("pos_embed", (1, 8, 8, 8), (1, 8, 12, 12)),)
    assert target.pos_embed.shape == (1, 8, 12, 12)


def test_patterns_allow_missing_and_unexpected():
    state = small().state_dict()
    state.pop("classifier.norm.bias")
    state["outnorm0.weight"] = torch.zeros(8)
    report = load_weights(small(), state, allow_missing=("classifier.norm.*",), allow_unexpected=("outnorm*",))
    assert report.clean


def test_no_weights_at_all():
    with pytest.raises(CheckpointError, match="holds no weights; its entries are epoch"):
        load_weights(small(), {"epoch": 3})
