"""What the whole suite runs under."""

import os

import torch

# Without a GPU the Triton kernels run in Triton's interpreter, which looks at this when Triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
