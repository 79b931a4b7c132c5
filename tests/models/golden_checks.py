"""Comparison of a network with a parity record: keys, outputs, and the gradients of every parameter."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def assert_close(name: str, got: Tensor, expected: np.ndarray, scale: float | None = None) -> None:
    """Within 1e-4 of the standard deviation."""
    assert tuple(got.shape) == expected.shape, name
    error = np.abs(got.detach().cpu().numpy() - expected).max()
    assert error <= 1e-4 * (scale or expected.std()), f"{name}: off by {error:.2e}"


def check_keys(model: nn.Module, record: Any) -> None:
    """Every key with its shape, in the published order, and the number of parameters."""
    keys = [(key, list(value.shape)) for key, value in model.state_dict().items()]
    assert dict(keys) == json.loads(str(record["keys"]))
    assert sum(p.numel() for p in model.parameters()) == int(record["num_params"])


def check_gradients(model: nn.Module, record: Any) -> None:
    """The norm of each parameter's gradient; one that is absent from the record is absent or 0."""
    expected = json.loads(str(record["grad_norms"]))
    parameters = dict(model.named_parameters())
    assert expected.keys() <= parameters.keys()
    for name, parameter in parameters.items():
        norm = 0.0 if parameter.grad is None else float(parameter.grad.norm())
        wanted = expected.get(name, 0.0)
        assert abs(norm - wanted) <= 1e-3 * wanted + 1e-6, f"{name}: gradient norm {norm}, published {wanted}"


def check_classifier(model: nn.Module, record: Any, golden: ModuleType, device: str | torch.device = "cpu") -> None:
    """Keys, logits, and where the record has them the gradients of the parameters and of the input."""
    check_keys(model, record)
    model = golden.fill(model).to(device)
    x = golden.image(tuple(record["input_shape"])).to(device).requires_grad_()
    output = model(x)
    assert_close("output", output, record["output"])
    if "grad_norms" not in record:
        return
    golden.probe_loss(output.cpu()).backward()
    check_gradients(model, record)
    if "grad_input_norm" in record:
        assert x.grad is not None
        norm, wanted = float(x.grad.norm()), float(record["grad_input_norm"])
        assert abs(norm - wanted) <= 1e-3 * wanted + 1e-6
        assert_close("input gradient", x.grad[0, 0], record["grad_input_sample"])
