"""The plugin for mmdetection, mmsegmentation and mmpretrain: ``custom_imports = dict(imports=["vmamba.openmmlab"])``.

Importing it registers the backbones and the layer-decay optimizer constructor with mmengine, where all three look;
serves mmcv's missing operators, if mmcv is there without its compiled part; and makes mmengine read checkpoints by this
package's reader, so that resuming works on every torch without unsafe pickles. None of the three is imported by it, and
their onedl-* forks serve as well.
"""

from importlib import import_module
from importlib.util import find_spec

if find_spec("mmengine") is None:
    raise ImportError('vmamba.openmmlab needs mmengine; install the set with: pip install "vmamba[openmmlab]"')

from vmamba.openmmlab.backbone import MM_VSSM
from vmamba.openmmlab.checkpoints import read_with_ours
from vmamba.openmmlab.forks import find_forks
from vmamba.openmmlab.layer_decay import LayerDecayOptimWrapperConstructor
from vmamba.openmmlab.operators import serve_missing_operators
from vmamba.openmmlab.time_budget import TimeBudget
from vmamba.openmmlab.vim_backbones import MM_FastVim, MM_Vim, VisionMambaDet, VisionMambaSeg

serve_missing_operators()
read_with_ours()
find_forks()
if find_spec("mmcv") is not None:
    import_module("vmamba.openmmlab.simple_fpn")

__all__ = [
    "MM_VSSM",
    "LayerDecayOptimWrapperConstructor",
    "MM_FastVim",
    "MM_Vim",
    "TimeBudget",
    "VisionMambaDet",
    "VisionMambaSeg",
    "read_with_ours",
    "serve_missing_operators",
]
