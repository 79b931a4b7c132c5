"""Ceilings for what nvcc makes of kernels/csrc/cuda/ss2d_f16.cu, which holds the kernels for float16."""

from __future__ import annotations

from .cuda_registers_ss2d import ATOMICS as ATOMICS
from .cuda_registers_ss2d import CEILINGS as CEILINGS
from .cuda_registers_ss2d import INSTANCES as INSTANCES
from .cuda_registers_ss2d import LOAD_BITS as LOAD_BITS
