"""Tables by the names of their columns: parquet, or text with a header line and tabs or commas between the cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from classification.packages import require_package
from vmamba.errors import UserError, closest

_PARQUET = b"PAR1"
Column = list[str | None]


def read_table(path: Path, columns: Sequence[str]) -> list[Column]:
    """Return the named columns of a table file as text, None for an empty cell.

    The first bytes tell what the file is, not its name: published tables called ``.tsv`` are parquet. Raises
    `UserError` for a file that cannot be read, a damaged one, and a column that is not there.
    """
    try:
        with open(path, "rb") as file:
            parquet = file.read(len(_PARQUET)) == _PARQUET
        found = _parquet(path, columns) if parquet else _text(path, columns)
    except OSError as error:
        raise UserError(f"cannot read the table {path}: {error.strerror or error}; check its permissions") from None
    return found


def _parquet(path: Path, columns: Sequence[str]) -> list[Column]:
    require_package("pyarrow", f"the parquet file {path}")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, columns, file.schema_arrow.names)
            table = file.read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(f"{path} is no complete parquet file: {reason}; copy it again") from None
    return [[_cell(value) for value in table.column(name).to_pylist()] for name in columns]


def _text(path: Path, columns: Sequence[str]) -> list[Column]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is neither parquet nor UTF-8 text; expected a table") from None
    header = text.partition("\n")[0]
    rows = list(csv.reader(io.StringIO(text), delimiter="\t" if "\t" in header else ","))
    names = rows[0] if rows else []
    _check_columns(path, columns, names)
    short = next((number for number, row in enumerate(rows[1:], 2) if row and len(row) != len(names)), None)
    if short is not None:
        raise UserError(f"{path}, line {short}: {len(rows[short - 1])} cells, the header has {len(names)}")
    places = [names.index(name) for name in columns]
    return [[_cell(row[place]) for row in rows[1:] if row] for place in places]


def _check_columns(path: Path, wanted: Sequence[str], present: Sequence[str]) -> None:
    for name in wanted:
        if name not in present:
            has = ", ".join(present) or "none"
            raise UserError(f"{path} has no column '{name}'; its columns are {has}.{closest(name, present)}")


def _cell(value: object) -> str | None:
    """Return the text of a cell; None for nothing, an empty text and what pandas writes for nothing, a NaN."""
    return None if value is None or value == "" or value != value else str(value)
