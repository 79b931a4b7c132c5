"""Which of this package's models a set of weights belongs to, told from keys and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vmamba.weights.loading import fit_weights


def models_that_fit(payload: Mapping[str, Any], **where: Any) -> list[str]:
    """Return the names of the models that the weights of a checkpoint fit but for the head, as few resized as can be.

    `where` is `entry` or `prefer_ema` of `load_weights`. A detector's or a backbone's weights fit the classifier whose
    backbone they are.
    """
    from vmamba import list_models

    fitting = []
    for name in list_models():
        report, _ = fit_weights(
            empty_model(name),
            payload,
            allow_head_mismatch=True,
            allow_missing=("classifier.*", "head.*"),
            allow_unexpected=("outnorm*", "classifier.head.*", "head.*"),
            **where,
        )
        if report.clean:
            fitting.append((len(report.resized), name))
    fewest = min((resized for resized, _ in fitting), default=0)
    return [name for resized, name in fitting if resized == fewest]


def empty_model(name: str, **kwargs: Any) -> nn.Module:
    """Return a model without memory for its weights, on the meta device: keys and shapes alone."""
    from vmamba import create_model

    with torch.device("meta"):
        return create_model(name, **kwargs)
