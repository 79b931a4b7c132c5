"""Log lines on standard output and in ``log_rank{r}.txt``, and one progress bar on a terminal."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from termcolor import colored

_FORMAT = "[%(asctime)s %(name)s] (%(filename)s %(lineno)d): %(levelname)s %(message)s"
_DATES = "%Y-%m-%d %H:%M:%S"


class _ConsoleHandler(logging.Handler):
    """Writes above the progress bar, and whatever standard output is at that moment."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        if self.console.is_terminal:
            self.console.out(self.format(record), highlight=False)
        else:
            sys.stdout.write(self.format(record) + "\n")
            sys.stdout.flush()


class _FileHandler(logging.FileHandler):
    """Leaves out what a full disk refuses; the console has it, and a traceback for each line would bury it."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def create_logger(name: str, rank: int, folder: Path | None, console: Console) -> logging.Logger:
    """Return the logger of this process: every rank writes its file, the first one also writes to the console.

    Debug lines (the configuration, the network) go to the file alone. Names of any encoding fit: odd bytes are escaped.
    """
    logger = logging.Logger(name, logging.DEBUG)
    if rank == 0:
        handler = _ConsoleHandler(console)
        handler.setLevel(logging.INFO)
        start = colored("[%(asctime)s %(name)s]", "green") + colored(" (%(filename)s %(lineno)d)", "yellow")
        coloured = start + ": %(levelname)s %(message)s"
        handler.setFormatter(logging.Formatter(coloured if console.is_terminal else _FORMAT, _DATES))
        logger.addHandler(handler)
    if folder is not None:
        path = folder / f"log_rank{rank}.txt"
        file = _FileHandler(path, mode="a", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter(_FORMAT, _DATES))
        logger.addHandler(file)
    return logger


def close_logger(logger: logging.Logger) -> None:
    """Close the files of `logger`."""
    for handler in logger.handlers[:]:
        with suppress(OSError):  # a full disk
            handler.close()
        logger.removeHandler(handler)


class Bar:
    """One progress bar over all training steps of the run, with the time left; silent where there is no terminal."""

    def __init__(self, console: Console, total: int, done: int, visible: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
            disable=not visible or not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("training", total=total, completed=done)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def step(self, text: str) -> None:
        """Advance by one step and show `text`."""
        if self._progress.disable:  # a hidden bar would still take its lock and guess its speed
            return
        self._progress.update(self._task, advance=1, description=text)
