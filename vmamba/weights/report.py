"""What became of each key of a checkpoint: the report that every load gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vmamba.weights.manifest import CheckpointError

Shape = tuple[int, ...]
_WIDTH = 11


@dataclass(frozen=True)
class LoadReport:
    """What became of each key; `mismatched` and `resized` hold (key, shape in the file, shape in the model).

    `renamed` holds (key in the file, key in the model) and is a part of `matched`, as `resized` is. `head_dropped`,
    `kept` (of the model) and `left_out` (of the file) differ because the caller or the model allows it, and `outside`
    are keys of other networks than the one loaded, such as the neck and head of a detector. `source` says where the
    weights were.
    """

    matched: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    resized: tuple[tuple[str, Shape, Shape], ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, Shape, Shape], ...] = ()
    head_dropped: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    source: str = ""

    @property
    def clean(self) -> bool:
        """True when every key of the file found its place and every key of the model got a value."""
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self) -> str:
        """Return the counts in one line, with the first names of what does not fit."""
        parts = [f"{len(self.matched)} keys matched"]
        for label, rows in self._accepted():
            if rows:
                parts.append(f"{len(rows)} {'head dropped' if label == 'fresh head' else label}")
        for label, rows in self._problems():
            if rows:
                more = ", ..." if len(rows) > 2 else ""
                parts.append(f"{len(rows)} {label} ({', '.join(rows[:2])}{more})")
        return ", ".join(parts)

    def table(self, limit: int = 8) -> str:
        """Return a short table of the keys that do not fit, `limit` rows of each kind."""
        return "\n".join(_rows(self._problems(), limit))

    def full_table(self, limit: int = 8) -> str:
        """Return the whole report as a table: a row of counts, then `limit` keys of each kind but the matched."""
        kinds = [*self._accepted(), *self._problems()]
        counts = [("matched", len(self.matched)), *((label, len(rows)) for label, rows in kinds)]
        shown = [(label, n) for label, n in counts if n or label in ("matched", "missing", "unexpected", "mismatched")]
        head = [f"{label:<{_WIDTH}} {n:>6} keys" for label, n in shown]
        return "\n".join([*([self.source] if self.source else []), *head, *_rows(kinds, limit)])

    def __str__(self) -> str:
        return self.full_table()

    def _problems(self) -> list[tuple[str, list[str]]]:
        return [
            ("missing", list(self.missing)),
            ("unexpected", list(self.unexpected)),
            ("mismatched", [f"{key} {list(a)} in the file, {list(b)} in the model" for key, a, b in self.mismatched]),
        ]

    def _accepted(self) -> list[tuple[str, list[str]]]:
        return [
            ("renamed", [f"{old} -> {new}" for old, new in self.renamed if old != new]),
            ("reshaped", [old for old, new in self.renamed if old == new]),
            ("resized", [f"{key} {list(a)} -> {list(b)}" for key, a, b in self.resized]),
            ("fresh head", list(self.head_dropped)),
            ("kept", list(self.kept)),
            ("left out", list(self.left_out)),
            ("outside", _by_first_word(self.outside)),
        ]


class WeightsDoNotFit(CheckpointError):
    """Weights of another model; `report` tells every key."""

    def __init__(self, message: str, report: LoadReport) -> None:
        super().__init__(message)
        self.report = report


def _rows(kinds: Iterable[tuple[str, Sequence[str]]], limit: int) -> list[str]:
    lines = []
    for label, rows in kinds:
        lines += [f"{label:<{_WIDTH}} {row}" for row in rows[:limit]]
        if len(rows) > limit:
            lines.append(f"{label:<{_WIDTH}} ... and {len(rows) - limit} more")
    return lines


def _by_first_word(keys: Iterable[str]) -> list[str]:
    counts: dict[str, int] = {}
    for key in keys:
        word = key.partition(".")[0]
        counts[word] = counts.get(word, 0) + 1
    return [f"{word}.* ({n} keys)" if n > 1 else word for word, n in counts.items()]
