"""Millions of file names in little memory, and names that can be printed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np

_ESCAPES = {ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}


class PackedNames:
    """A fixed sequence of names, kept as one block of bytes.

    A million paths as Python objects take hundreds of megabytes, and every loader process comes to copy them, because
    reading an object writes its reference count. Names of any encoding are kept as they are.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._block = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._block[start : self._ends[index]])

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


def printable(name: str | os.PathLike[str]) -> str:
    """Return a file name as one line of valid text: odd bytes, tabs and line breaks are escaped."""
    return os.fspath(name).encode("utf-8", "backslashreplace").decode("utf-8").translate(_ESCAPES)
