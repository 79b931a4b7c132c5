"""What the networks of every family share: weights under published names, fresh ones, recomputed activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

Shapes = tuple[tuple[int, ...], tuple[int, ...]]


class Network(nn.Module):
    """Base of the families: state dicts and checkpoints are read with the keys and shapes they were published with."""

    def read_published_keys(
        self, state_dict: Mapping[str, Tensor], prefix: str = ""
    ) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Shapes]]:
        """The weights under the present names, {old name: new name}, and {key: (old, new shape)} of what was resized.

        Only keys that start with `prefix` are read. A family whose weights have had other names or sizes says how.
        """
        return dict(state_dict), {}, {}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state, _, _ = self.read_published_keys(state_dict, prefix)
        state_dict.clear()
        state_dict.update(state)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def load_pretrained(self, path: str) -> Any:
        """Load a checkpoint of any published layout for timm's `pretrained=True` and return the loader's report.

        The head may have another number of classes, and the first convolution other input channels, as timm adapts it.
        Everything else must fit.
        """
        from ..weights.adapting import load_adapted

        return load_adapted(self, path)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward (non-reentrant) instead of keeping them."""
        block: Any
        for block in self.modules():
            if hasattr(block, "use_checkpoint"):
                block.use_checkpoint = enable

    def _reset_layers(self) -> None:
        """Draw the parameters of every layer that knows how to do so by itself, such as PyTorch's own."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
