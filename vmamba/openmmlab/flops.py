"""Parameters and FLOPs of a configuration's model, nothing computed: ``python -m vmamba.openmmlab.flops CONFIG``.

FLOPs are multiply-accumulate operations, counted as in `vmamba.counting`. A detector of two stages counts with 1000
regions for its boxes and 100 for its masks, as the published figures do; auxiliary heads only train and do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

from vmamba.command_line import Parser, parse_size
from vmamba.counting import Count, count_model
from vmamba.errors import exit_on_user_error
from vmamba.openmmlab.configs import read_config
from vmamba.openmmlab.models import empty_model, scope_of
from vmamba.openmmlab.running import add_config

SIZES = {"mmdet": (1280, 800), "mmseg": (512, 2048), "mmpretrain": (224, 224)}
BOXES, MASKS = 1000, 100


class TwoStages(nn.Module):
    """What a detector with region heads computes for one image, its regions being as many as published figures count.

    Where regions lie depends on the image and changes no count, so the heads get empty ones.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = detector

    def forward(self, images: Tensor) -> None:
        maps = self.detector.extract_feat(images)
        if getattr(self.detector, "with_rpn", False):
            self.detector.rpn_head(maps)
        roi_head = self.detector.roi_head
        for name, count in (("bbox", BOXES), ("mask", MASKS)):
            if not getattr(roi_head, f"with_{name}", False):
                continue
            extractors = _listed(getattr(roi_head, f"{name}_roi_extractor"))
            for head, extractor in zip(_listed(getattr(roi_head, f"{name}_head")), extractors):
                size = extractor.roi_layers[0].output_size
                head(maps[0].new_empty(count, extractor.out_channels, *size))


def count_config(cfg: Config, size: tuple[int, int] | None = None) -> Count:
    """Return the counts of a configuration's model for one image of `size`, (height, width).

    The default is the published tables': 1280x800 for detectors, 512x2048 for segmentors, 224x224 for classifiers.
    """
    model = empty_model(cfg)
    if hasattr(model, "roi_head"):
        model = TwoStages(model)
    return count_model(model, size or SIZES[scope_of(cfg)])


def _listed(module: Any) -> list[Any]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m vmamba.openmmlab.flops", description=__doc__)
    add_config(parser)
    parser.add_argument("--size", metavar="HxW", type=parse_size, help="of the image (default: the published tables')")
    options = parser.parse(argv)
    cfg = read_config(options.config, options.cfg_options)
    count = count_config(cfg, options.size)
    print(f"input       3x{count.image[2]}x{count.image[3]}")
    print(f"parameters  {count.parameters:,} ({count.parameters / 1e6:.1f} M)")
    print(f"FLOPs       {count.gflops:.1f} G")
    for part in ("backbone", "neck", "rpn_head", "roi_head", "decode_head", "head"):
        inside = count.within(f"detector.{part}") or count.within(part)
        if inside:
            print(f"  {part:<12}{inside / 1e9:.1f} G")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
