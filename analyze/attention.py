"""Attention maps of scans: ``python -m analyze.attention --model NAME --query 0.5,0.5 --maps a0_absnorm_CwBdtw``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from analyze.attention_maps import ROLLOUT, normalised, over_image, parse_map, rolled_out, selected
from analyze.command import folder_of, new_parser, one_line, subject_of, tracked
from analyze.output import Analysis, Output
from analyze.pictures import pictures
from analyze.recording import record
from analyze.scans import Scan
from analyze.subject import Subject
from vmamba.errors import UserError, closest
from vmamba.figures import new_figure
from vmamba.gradient_pictures import overlay, seen_by

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASS = "class"
METHOD = (
    "Mean over the channels of rows of the mixing matrix M_ij = C_i exp(A (s_i - s_j)) B_j delta_j of {layer}, s the "
    "running sum of the step sizes delta, in float64, put back over the image; {norm}. Query: the token at the mark. "
    "{model}. After VMamba, 2024, section 4.5."
)
Point = tuple[float, float]


@dataclass(frozen=True)
class Query:
    """A point (y, x) of an image, from 0 to 1, or None for the class token."""

    point: Point | None

    def token(self, scan: Scan) -> int:
        """Return the number of its token; `UserError` where there is no class token."""
        if self.point is None:
            if not scan.classes:
                raise UserError("--query class: this model has no class token; give a point Y,X")
            return scan.grid[0] * scan.grid[1]
        row, column = (min(int(v * n), n - 1) for v, n in zip(self.point, scan.grid))
        return row * scan.grid[1] + column

    def __str__(self) -> str:
        return CLASS if self.point is None else f"{self.point[0]:g},{self.point[1]:g}"


def parse_query(text: str) -> Query:
    """Return the query of "Y,X", parts of height and width from 0 to 1, or of "class"."""
    if text == CLASS:
        return Query(None)
    try:
        y, x = (float(word) for word in text.split(","))
    except ValueError:
        y = -1.0
        x = 0.0
    if not (0 <= y <= 1 and 0 <= x <= 1):
        raise UserError(
            f"--query {text}: give Y,X as parts of height and width from 0 to 1, such as 0.5,0.25, or class"
        )
    return Query((y, x))


def read_clicks(path: Path, names: Sequence[str]) -> dict[str, list[Query]]:
    """Return the queries of a list of clicks by the name of the image: JSON, [[IMAGE, Y, X], ...].

    IMAGE is a name or the number of an image, counted from 0.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        clicks: dict[str, list[Query]] = {}
        for image, y, x in rows:
            name = names[image] if isinstance(image, int) else str(image)
            if name not in names:
                raise UserError(f"--clicks {path}: there is no image '{name}'.{closest(name, names)}")
            clicks.setdefault(name, []).append(parse_query(f"{y},{x}"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--clicks {path} cannot be read ({error})") from None
    except (ValueError, TypeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--clicks {path}: it is a JSON list of [IMAGE, Y, X]; {error}") from None
    return clicks


def choose_layer(scans: Mapping[str, Scan], layer: str | None) -> str:
    """Return the name of a scan; None is the last one of the stage before the last, or of the only stage."""
    if layer is None:
        grids = list(dict.fromkeys(scan.grid for scan in scans.values()))
        wanted = grids[-2] if len(grids) > 1 else grids[-1]
        return [name for name, scan in scans.items() if scan.grid == wanted][-1]
    if layer not in scans:
        raise UserError(
            f"--layer {layer}: no scan of that name.{closest(layer, scans)} The scans are {', '.join(scans)}"
        )
    return layer


def maps_of(scans: Mapping[str, Scan], layer: str, query: Query, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the maps [H, W] of one query by name, over the image's tokens; "ao" maps over the steps, as a grid."""
    scan = scans[layer]
    token = torch.tensor([query.token(scan)], device=scan.u.device)
    found = {}
    for text in names:
        name = parse_map(text)
        if name.selection == ROLLOUT:
            before = [s for s in scans.values() if s.length == scan.length]
            before = before[: [s.layer for s in before].index(layer) + 1]
            rows = rolled_out(before, token)
        else:
            rows = selected(scan, token, name)
        steps = name.selection.startswith("ao") and rows.shape[1] != scan.grid[0] * scan.grid[1]
        found[text] = rows if steps else over_image(rows, scan)[0]
    return {text: value.cpu() for text, value in found.items()}


def default_maps(scan: Scan) -> list[str]:
    """Return the names of the maps that are drawn where none is named: every sequence, and all together."""
    return [*(f"a{k}_absnorm_CwBdtw" for k in range(scan.groups)), "all_absnorm_CwBdtw"]


def draw(seen: Mapping[str, Image.Image], maps: Mapping[tuple[str, Query], Mapping[str, Tensor]]) -> Figure:
    """Return a figure with a row for each (image, query): the image with its mark, then an overlay for each map."""
    wide = 1 + max(len(found) for found in maps.values())
    figure = new_figure(2.3 * wide, 2.5 * len(maps))
    figure.set_layout_engine("constrained", h_pad=0.08)
    panels = figure.subplots(len(maps), wide, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for line, ((name, query), found) in zip(panels, maps.items()):
        picture = seen[name]
        line[0].imshow(picture, cmap="gray" if picture.mode == "L" else None)
        line[0].set_title(f"{name}, query {query}", fontsize=8)
        for axes, (text, value) in zip(line[1:], found.items()):
            size = (picture.height, picture.width)
            strength = normalised(value.flatten(), "absnorm").view(1, 1, *value.shape)
            axes.imshow(overlay(picture, F.interpolate(strength, size, mode="nearest")[0, 0].float()))
            axes.set_title(text, fontsize=8)
        if query.point is not None:
            cells = max((value.shape for value in found.values()), key=lambda shape: shape[0])
            y, x = ((min(int(v * n), n - 1) + 0.5) / n for v, n in zip(query.point, cells))  # the token's middle
            for axes in line[: 1 + len(found)]:
                axes.plot([x * picture.width - 0.5], [y * picture.height - 0.5], "s", mfc="none", mec="cyan", ms=7)
    return figure


def measure(
    subject: Subject,
    images: Mapping[str, Image.Image],
    queries: Mapping[str, Sequence[Query]],
    output: Output,
    names: Sequence[str] = (),
    layer: str | None = None,
) -> Analysis:
    """Write overlays, the maps as arrays, and a table of where they lie, for each query of each image."""
    arrays: dict[str, Any] = {}
    table: list[dict[str, Any]] = []
    drawn: dict[tuple[str, Query], dict[str, Tensor]] = {}
    seen: dict[str, Image.Image] = {}
    chosen, wanted = "", list(names)
    for name, picture in tracked(list(images.items()), "attention"):
        x = subject.read(picture)
        seen[name] = seen_by(subject.opened.transform, picture.convert(subject.opened.mode), subject.size)
        scans = record(subject.network, x)
        chosen = choose_layer(scans, layer)
        wanted = wanted or default_maps(scans[chosen])
        for query in queries[name]:
            found = maps_of(scans, chosen, query, wanted)
            drawn[name, query] = found
            for text, value in found.items():
                arrays[f"{name}/{query}/{text}"] = value
                row, column = divmod(int(value.abs().argmax()), value.shape[1])
                table.append({"image": name, "query": str(query), "map": text, "greatest at": f"{row},{column}"})
    output.picture("Attention maps", draw(seen, drawn))
    output.arrays(arrays)
    output.table("Maps", table)
    norm = "absnorm: absolute values over the greatest of the row; norm: from least to greatest to 0..1"
    return output.close(METHOD.format(layer=chosen, norm=norm, model=subject.described()))


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("attention", __doc__)
    parser.add_argument(
        "--query", nargs="+", default=["0.5,0.5"], metavar="Y,X", help="points from 0 to 1, or class (default 0.5,0.5)"
    )
    parser.add_argument("--clicks", type=Path, metavar="FILE", help="a JSON list of [IMAGE, Y, X] instead of --query")
    parser.add_argument("--layer", metavar="NAME", help="the scan (default: the last of the stage before the last)")
    parser.add_argument("--list-layers", action="store_true", help="print the names of the scans and stop")
    parser.add_argument(
        "--maps", nargs="+", default=[], metavar="MAP",
        help="SELECTION[_norm|_absnorm]_MODE or rollout (default: every sequence, and all, of CwBdtw)",
    )  # fmt: skip
    arguments = parser.parse(argv)
    for text in arguments.maps:
        parse_map(text)
    subject = subject_of(arguments)
    images = pictures(arguments.images, subject.opened.mode, arguments.count)
    if arguments.list_layers:
        for name, scan in record(subject.network, subject.read(next(iter(images.values())))).items():
            print(f"{name}  {scan.grid[0]}x{scan.grid[1]} tokens, {scan.groups} sequences")
        return 0
    queries = {name: [parse_query(text) for text in arguments.query] for name in images}
    if arguments.clicks:
        clicks = read_clicks(arguments.clicks, list(images))
        images = {name: image for name, image in images.items() if name in clicks}
        queries = clicks
    output = Output(folder_of(arguments), "attention", "Attention maps of the scans")
    measure(subject, images, queries, output, arguments.maps, arguments.layer)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
