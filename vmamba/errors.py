"""Errors a user can act on, and the one place where they become an exit code."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """Bad input: one line that names the file, key or argument, and the next step."""


class OutOfMemory(UserError):
    """Memory did not hold even the least that was asked for."""


def closest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name nearest to `name`, or an empty string."""
    candidates = [str(k) for k in known]
    folded = {c.lower(): c for c in candidates}
    matches = difflib.get_close_matches(str(name).lower(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean '{folded[matches[0]]}'?" if matches else ""


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int]:
    """Return `main` that prints a `UserError` or a missing file as one line and answers with exit code 2."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except (UserError, FileNotFoundError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2

    return wrapped
