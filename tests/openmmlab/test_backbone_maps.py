"""The maps of MM_VSSM: the published ones at 64x64, the classifier's own at an odd size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vmamba.models.vssm import VSSM
from vmamba.openmmlab import MM_VSSM

from ..models.golden_checks import assert_close

# The two designs; tests/models compares the other records with the class that MM_VSSM extends.
RECORDS = [
    Path(__file__).parents[1] / "data" / "golden" / "vmamba" / f"{name}_64x64.npz" for name in ("tiny_s1l8", "v0_tiny")
]


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_maps_are_the_published_ones(path, golden):
    record = np.load(path)
    kwargs = json.loads(str(record["kwargs"]))
    kwargs.pop("num_classes", None)
    model = golden.fill(MM_VSSM(**kwargs))
    with torch.no_grad():
        maps = model(golden.image(tuple(record["input_shape"])))
    assert isinstance(maps, tuple) and len(maps) == 4
    for i, found in enumerate(maps):
        assert list(found.shape) == record[f"feature{i}_shape"].tolist() and found.is_contiguous()
        assert_close(f"map {i}", found[0, :4], record[f"feature{i}_sample"])


@pytest.mark.parametrize(
    "path", [p for p in RECORDS if p.stem.startswith(("tiny_s1l8", "v0_tiny"))], ids=lambda p: p.stem
)
def test_levels_are_the_classifiers_at_an_odd_size(path, golden):
    kwargs = json.loads(str(np.load(path)["kwargs"]))
    classifier = golden.fill(VSSM(**kwargs)).eval()
    kwargs.pop("num_classes", None)
    backbone = MM_VSSM(**kwargs).eval()
    backbone.load_state_dict(classifier.state_dict(), strict=False)
    x = golden.image((1, 3, 225, 181))
    with torch.no_grad():
        maps = backbone(x)
        levels = classifier.forward_intermediates(x, intermediates_only=True)
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(level.shape[2:]) for level in levels]
    for found, level in zip(maps, levels, strict=True):
        normed = nn.functional.layer_norm(level.permute(0, 2, 3, 1), level.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, normed, atol=1e-5, rtol=1e-5)
