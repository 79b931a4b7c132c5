"""Parameters, FLOPs and activation memory of any model at any size, on the CPU, without computing or allocating it.

FLOPs are multiply-accumulate operations (MACs), the vocabulary of the papers: one multiplication with its addition
counts as one. The rules, which give the published figures: convolutions, linear layers and matrix products their MACs;
LayerNorm and GroupNorm 5 per element (4 without weights), RMSNorm 4, BatchNorm 2 in evaluation; average pooling one
per input; a scan 9 per step, channel and state, and 1 per step and channel for its skip; activations, sums and products
of elements, and moving data, nothing.
"""

from .fake import check_size
from .fvcore_handlers import fvcore_handlers
from .memory import Activations, activation_memory
from .rules import rule
from .walk import Count, count_model

__all__ = ["Activations", "Count", "activation_memory", "check_size", "count_model", "fvcore_handlers", "rule"]
