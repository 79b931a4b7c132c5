"""A small network for the tests of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vmamba.models.vssm import VSSM

VANILLA = dict(
    dims=[8, 16],
    depths=[1, 2],
    num_classes=5,
    ssm_d_state=2,
    ssm_ratio=1.0,
    forward_type="v0",
    mlp_ratio=1.0,
    downsample_version="v1",
    patchembed_version="v1",
    posembed=True,
    imgsize=32,
)


@pytest.fixture
def make():
    """Return a function that makes a small network with every part that has had another name."""

    def build(**changes) -> VSSM:
        return VSSM(**{**VANILLA, **changes})

    return build


@pytest.fixture
def equal():
    """Return a function that tells whether two networks or dicts have the same keys, types and bits."""

    def compare(a, b) -> bool:
        ours, theirs = (x.state_dict() if isinstance(x, nn.Module) else x for x in (a, b))
        return ours.keys() == theirs.keys() and all(
            ours[k].dtype == theirs[k].dtype and torch.equal(ours[k], theirs[k]) for k in ours
        )

    return compare
