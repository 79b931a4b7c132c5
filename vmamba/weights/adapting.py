"""timm's ``pretrained=True`` through the one loader."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vmamba.weights.loading import find_weights, fit_weights
from vmamba.weights.reading import load_checkpoint
from vmamba.weights.released import released_file
from vmamba.weights.report import LoadReport, WeightsDoNotFit


def load_adapted(model: nn.Module, path: str | Path) -> LoadReport:
    """Load a checkpoint into a model that timm built, print and return the report.

    Of a released file the entry whose accuracy was published is taken.
    The head is left fresh where the model has another number of classes than its ``pretrained_cfg``, the first
    convolution is adapted to the model's input channels, and a model without head takes the rest. `WeightsDoNotFit`
    for any other difference.
    """
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    classifier = cfg.get("classifier") or ""
    classes = getattr(model, "num_classes", None)
    released = released_file(Path(path).name)
    report, state = fit_weights(
        model,
        load_checkpoint(path),
        entry=(released.entry if released else "") or None,
        allow_head_mismatch=bool(classes) and classes != cfg.get("num_classes", classes),
        allow_unexpected=(f"{classifier}.*",) if classifier and not classes else (),
        first_conv=cfg.get("first_conv") or "",
        name=str(path),
    )
    if os.environ.get("RANK", "0") == "0":
        print(report.full_table(), file=sys.stderr)
    if not report.clean:
        raise WeightsDoNotFit(f"{path} does not fit {type(model).__name__}: {report.summary()}", report)
    model.load_state_dict(state, strict=False)
    return report


def weights_for_timm(model: nn.Module, payload: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a checkpoint's weights under the model's names, for timm's own loading, which adapts head and channels.

    The head and the input channels of the first convolution are as in the file. `WeightsDoNotFit` for any difference
    but these: timm would pass over it where the number of classes differs.
    """
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    classifier, first = cfg.get("classifier") or "classifier.head", cfg.get("first_conv") or "patch_embed.0"
    head = (f"{classifier}.*",)
    report, state = fit_weights(
        model, payload, allow_head_mismatch=True, allow_missing=head, allow_unexpected=head, first_conv=first
    )
    if not report.clean:
        raise WeightsDoNotFit(f"the weights do not fit {type(model).__name__}: {report.summary()}", report)
    stored = find_weights(model, payload).state
    return {**state, **{key: value for key, value in stored.items() if key.startswith((classifier, first))}}
