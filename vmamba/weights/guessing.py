"""Which of this package's models a set of weights belongs to, told from keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vmamba.weights.contents import choose_entry
from vmamba.weights.loading import fit_weights

# A key that every model of the Vim family has and no VSSM does.
_VIM = re.compile(r"(^|\.)layers\.0\.mixer\.")


def models_that_fit(payload: Mapping[str, Any], **where: Any) -> list[str]:
    """Return the names of the models that the weights of a checkpoint fit but for the head, as few resized as can be.

    `where` is `entry` or `prefer_ema` of `load_weights`. A detector's or a backbone's weights fit the classifier whose
    backbone they are.
    """
    from vmamba import list_models
    from vmamba.models import VARIANTS, model_names

    keys = choose_entry(payload, **where)[1]
    of_vim = any(_VIM.search(key) for key in keys)
    other = set(VARIANTS) if of_vim else set(model_names()) - set(VARIANTS)
    fitting = []
    for name in list_models():
        if name in other:
            continue
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
