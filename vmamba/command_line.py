"""How every command here reads its words: what is wrong is one line, with the nearest flag."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from vmamba.errors import UserError, closest


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UserError` where argparse prints and exits; flags are not abbreviated."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Return the parsed words; '-' and '_' inside a flag mean the same. An unknown flag is a `UserError`."""
        known = list(self._option_string_actions)
        given = [_spelling(word, known) for word in (sys.argv[1:] if argv is None else argv)]
        for word in given[: given.index("--")] if "--" in given else given:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in known and " " not in flag:
                self._refuse(flag, known)
        options, rest = self.parse_known_args(given)
        if rest:
            self._refuse(rest[0], known)
        return options

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} -h")

    def _refuse(self, word: str, known: list[str]) -> NoReturn:
        kind = "flag" if word.startswith("-") else "argument"
        raise UserError(f"unknown {kind} '{word}'.{closest(word, known)} See {self.prog} -h")


def _spelling(word: str, known: list[str]) -> str:
    """Return a flag in its declared spelling, whichever of '-' and '_' joins its words."""
    flag, equals, value = word.partition("=")
    if not flag.startswith("--"):
        return word
    for name in known:
        if name.replace("_", "-") == flag.replace("_", "-"):
            return name + equals + value
    return word


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of "224" or "224x320"; `UserError` for anything else."""
    words = text.lower().split("x")
    if not 1 <= len(words) <= 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"--size {text}: give a positive number of pixels, or HEIGHTxWIDTH such as 224x320")
    return int(words[0]), int(words[-1])
