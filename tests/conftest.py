"""What the whole suite runs under."""

import os
import random

import pytest
import torch

# Without a GPU the Triton kernels run in Triton's interpreter, which looks at this when Triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Nothing here may reach for a network; the packages of the Hugging Face hub look at this when they are first imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def drawn_alike():
    """Every test draws the same random numbers, whatever ran before it."""
    random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A slow test may take half an hour on a busy machine before it counts as hanging."""
    if not config.pluginmanager.hasplugin("timeout"):  # as on a machine that has pytest alone
        return
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))
