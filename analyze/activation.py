"""Activations, Grad-CAM and likeness to a point, stage by stage: ``python -m analyze.activation --query 0.5,0.5``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from analyze.attention import Point, parse_query
from analyze.command import folder_of, new_parser, one_line, subject_of, tracked
from analyze.output import Analysis, Output
from analyze.pictures import pictures
from analyze.stage_maps import StageMap, stage_maps
from analyze.subject import Subject
from vmamba.class_names import numbered
from vmamba.errors import UserError
from vmamba.figures import new_figure
from vmamba.gradient_pictures import class_gradient, overlay, seen_by

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_STAGES = 4
METHOD = (
    "Per stage of {model}: |x|, the length of the feature vector at each position; Grad-CAM, relu of the features "
    "weighted by the mean gradient of the score of {target}; likeness, the cosine with the features at the mark. "
    "Pixels: the gradient of that score at the pixels, its largest size over the colours. Each map over its greatest "
    "value, enlarged bilinearly; at most {most} stages, and none whose tokens the score does not read. After Selvaraju "
    "et al., 2017, and Simonyan et al., 2013."
)


def draw(rows: Mapping[str, Mapping[str, Tensor]], seen: Mapping[str, Image.Image], point: Point) -> Figure:
    """Return a figure with a row for each image: the image with its mark, then an overlay for each map."""
    wide = 1 + max(len(maps) for maps in rows.values())
    figure = new_figure(1.9 * wide, 2.1 * len(rows))
    figure.set_layout_engine("constrained", h_pad=0.08)
    panels = figure.subplots(len(rows), wide, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for line, (name, maps) in zip(panels, rows.items()):
        picture = seen[name]
        line[0].imshow(picture, cmap="gray" if picture.mode == "L" else None)
        line[0].plot([point[1] * picture.width - 0.5], [point[0] * picture.height - 0.5], "s", mfc="none", mec="cyan")
        line[0].set_title(name, fontsize=7)
        for axes, (title, value) in zip(line[1:], maps.items()):
            large = F.interpolate(value[None, None].float(), (picture.height, picture.width), mode="bilinear")
            axes.imshow(overlay(picture, large[0, 0].clamp(0, 1)))
            axes.set_title(title, fontsize=7)
    return figure


def shown_stages(maps: list[StageMap]) -> list[StageMap]:
    """Return at most `MOST_STAGES` of the stages, evenly taken, the last among them."""
    if len(maps) <= MOST_STAGES:
        return maps
    return [maps[round((i + 1) * len(maps) / MOST_STAGES) - 1] for i in range(MOST_STAGES)]


def measure(
    subject: Subject,
    images: Mapping[str, Image.Image],
    output: Output,
    point: Point = (0.5, 0.5),
    index: int | None = None,
) -> Analysis:
    """Write overlays and arrays of every image, and the class that each map is of."""
    rows: dict[str, dict[str, Tensor]] = {}
    seen: dict[str, Image.Image] = {}
    arrays: dict[str, Tensor] = {}
    table: list[dict[str, Any]] = []
    for name, picture in tracked(list(images.items()), "activation"):
        x = subject.read(picture)
        seen[name] = seen_by(subject.opened.transform, picture.convert(subject.opened.mode), subject.size)
        maps, chosen = stage_maps(subject.network, x, index)
        rows[name] = {"pixels": class_gradient(subject.network, x, chosen)}
        for stage in shown_stages([stage for stage in maps if bool(stage.gradient.any())] or maps):
            found = {"|x|": stage.strength(), "Grad-CAM": stage.grad_cam(), "likeness": stage.likeness(point)}
            rows[name] |= {f"{stage.name} {kind}": value for kind, value in found.items()}
        arrays |= {f"{name}/{title}": value for title, value in rows[name].items()}
        label = numbered(subject.opened.class_names, chosen + 1)[chosen]
        row: dict[str, Any] = {"image": name, "class": label, "number": chosen}
        table.append(row | {"stages": ", ".join(stage.name for stage in maps)})
    output.picture("Activations and Grad-CAM", draw(rows, seen, point))
    output.arrays(arrays)
    output.table("Classes", table)
    target = "the likeliest class" if index is None else f"class {index}"
    return output.close(METHOD.format(model=subject.described(), target=target, most=MOST_STAGES))


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("activation", __doc__)
    parser.add_argument("--query", default="0.5,0.5", metavar="Y,X", help="the marked point (default 0.5,0.5)")
    parser.add_argument("--class", dest="index", type=int, metavar="N", help="whose score (default: the likeliest)")
    arguments = parser.parse(argv)
    point = parse_query(arguments.query).point
    if point is None:
        raise UserError("--query class: give a point Y,X; a map of features has no class token")
    subject = subject_of(arguments)
    images = pictures(arguments.images, subject.opened.mode, arguments.count)
    output = Output(folder_of(arguments), "activation", "Activations and Grad-CAM")
    measure(subject, images, output, point, arguments.index)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
