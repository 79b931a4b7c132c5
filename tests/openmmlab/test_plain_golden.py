"""Parity with the published backbones of Vim and FastVim: keys and maps of every record.

And gradients of MM_Vim's and MM_FastVim's; the records of detectors and segmentors have none.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vmamba.openmmlab import MM_FastVim, MM_Vim, VisionMambaDet, VisionMambaSeg

from ..models.golden_checks import assert_close, check_gradients, check_keys

KINDS = {"mini_mm_vim": MM_Vim, "mini_mm_fastvim": MM_FastVim, "seg_": VisionMambaSeg, "det_": VisionMambaDet}
RECORDS = sorted((Path(__file__).parents[1] / "data" / "golden" / "dense").glob("*.npz"))
assert len(RECORDS) == 6


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem.removesuffix("_64x64"))
def test_maps_are_the_published_ones(path: Path, golden: ModuleType) -> None:
    record = np.load(path)
    (kind,) = [kind for start, kind in KINDS.items() if path.stem.startswith(start)]
    model = kind(**json.loads(str(record["kwargs"])))
    check_keys(model, record)
    found = golden.fill(model)(golden.image(tuple(record["input_shape"])))
    maps = found if isinstance(found, tuple) else (found,)
    assert f"feature{len(maps)}_shape" not in record
    for i, one in enumerate(maps):
        assert list(one.shape) == record[f"feature{i}_shape"].tolist() and one.is_contiguous()
        spread = float(record[f"feature{i}_sample"].std())
        assert_close(f"map {i}", one[0, :4], record[f"feature{i}_sample"])
        assert_close(f"means of map {i}", one.mean((0, 2, 3)), record[f"feature{i}_channel_mean"], spread)
    assert ("grad_norms" in record) == path.stem.startswith("mini_mm")
    if "grad_norms" in record:
        sum(golden.probe_loss(one) for one in maps).backward()
        check_gradients(model, record)
