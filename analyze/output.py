"""What a command leaves: pictures, arrays, a JSON file of its numbers, and the line that says how they were made."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmamba.errors import UserError
from vmamba.figures import write_figure
from vmamba.weights import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


@dataclass
class Analysis:
    """What one command found: pictures and tables by caption, and the method in a sentence or two."""

    name: str
    title: str
    method: str = ""
    pictures: dict[str, Path] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)


class Output:
    """Collects the pictures and numbers of a command and writes them into a folder, each file whole or not at all."""

    def __init__(self, folder: Path, name: str, title: str) -> None:
        self.folder = folder
        self.analysis = Analysis(name, title)
        self.printed: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder}: it cannot be made ({error.strerror}); name another folder") from None

    def picture(self, caption: str, figure: Figure, stem: str = "", vector: bool = False, dpi: int = 100) -> None:
        """Write a figure as PNG, and with `vector` as SVG too."""
        path = self.folder / f"{stem or self.analysis.name}.png"
        write_figure(figure, path, dpi)
        if vector:
            write_figure(figure, path.with_suffix(".svg"))
        self.analysis.pictures[caption] = path

    def arrays(self, arrays: Mapping[str, Any], stem: str = "") -> None:
        """Write arrays as a compressed NPZ file."""
        data = io.BytesIO()
        np.savez_compressed(data, **{name: np.asarray(value) for name, value in arrays.items()})  # type: ignore[arg-type]
        write_bytes(self.folder / f"{stem or self.analysis.name}.npz", data.getvalue())

    def table(self, caption: str, rows: Sequence[Row], printed: bool = True) -> None:
        """Keep a table for the JSON file and the report, and to be printed at the end."""
        self.analysis.tables[caption] = list(rows)
        if printed:
            self.printed.append(caption)

    def close(self, method: str) -> Analysis:
        """Write ``NAME.json`` with the tables and the method, print the method, and return everything."""
        self.analysis.method = method
        about = asdict(self.analysis)
        about["pictures"] = {caption: path.name for caption, path in self.analysis.pictures.items()}
        about["date"] = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        path = self.folder / f"{self.analysis.name}.json"
        write_text(path, json.dumps(about, indent=1, default=_plain) + "\n")
        for caption in self.printed:
            print(f"{caption}\n{as_text(self.analysis.tables[caption])}")
        print(f"method: {method}")
        print(f"wrote {path} and {len(self.analysis.pictures)} pictures")
        return self.analysis


def _plain(value: Any) -> Any:
    """Return what JSON has no word for as a number or a text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def cell(value: Any) -> str:
    """Return a value as a cell of a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def columns(rows: Sequence[Row]) -> list[str]:
    """Return the names of all columns of some rows, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row))


def as_text(rows: Sequence[Row]) -> str:
    """Return rows as a table of aligned columns."""
    names = columns(rows)
    cells = [names, *([cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in cells)
