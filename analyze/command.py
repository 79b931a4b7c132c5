"""What the command lines have in common: model, weights, images, size, folder; and a bar on a terminal."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from analyze.subject import DEFAULT, Size, Subject, open_subject, open_subjects
from vmamba.command_line import Parser, parse_size
from vmamba.errors import UserError, exit_on_user_error
from vmamba.host_memory import out_of_memory

T = TypeVar("T")
_shown: list[Progress] = []  # the display on the terminal while there is one; loops inside of loops share it


@contextmanager
def memory_told() -> Iterator[None]:
    """Turn memory that runs out inside into a `UserError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError("out of memory for one image; give a smaller --size, or another --device") from None


def one_line(main: Callable[..., int | None]) -> Callable[..., int]:
    """Return `main` that tells bad input, and memory that ran out, in one line, with exit code 2."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int | None:
        with memory_told():
            return main(*args, **kwargs)

    return exit_on_user_error(wrapped)


def new_parser(name: str, description: str | None, *, compare: bool = False, images: bool = True) -> Parser:
    """Return the parser of ``python -m analyze.NAME`` with the flags that all commands share."""
    parser = Parser(prog=f"python -m analyze.{name}", description=description)
    parser.add_argument(
        "--model", metavar="NAME|CONFIG", help=f"a model of ours or timm's, or a yaml file (default {DEFAULT})"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint; alone: one of the trainer")
    if compare:
        parser.add_argument(
            "--compare", nargs="+", default=[], metavar="NAME[=FILE]", help="further models, with the weights of a file"
        )
    if images:
        parser.add_argument(
            "--images", nargs="+", type=Path, metavar="PATH", help="image files and folders (default: bundled ones)"
        )
        parser.add_argument("--count", type=int, metavar="N", help="at most so many of the images")
    parser.add_argument("--size", metavar="HxW", help="size of the images, 224 or 224x320 (default: the model's own)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder to write to (default output/analyze/{name})")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default): a GPU when there is one")
    parser.add_argument("--seed", type=int, default=0, help="of random weights (default 0)")
    parser.set_defaults(command=name)
    return parser


def folder_of(arguments: argparse.Namespace) -> Path:
    """Return the folder to write to."""
    return arguments.out or Path("output") / "analyze" / arguments.command


def size_of(arguments: argparse.Namespace) -> Size | None:
    """Return (height, width) of ``--size``, None where it is the model's own."""
    return parse_size(arguments.size) if arguments.size else None


def subject_of(arguments: argparse.Namespace) -> Subject:
    """Return the network that the command line names."""
    return open_subject(arguments.model, arguments.weights, size_of(arguments), arguments.device, seed=arguments.seed)


def subjects_of(arguments: argparse.Namespace) -> list[Subject]:
    """Return the network that the command line names, and those to compare it with."""
    return open_subjects(
        arguments.model, arguments.weights, arguments.compare, size_of(arguments), arguments.device, arguments.seed
    )


def tracked(items: Sequence[T], description: str) -> Iterator[T]:
    """Yield the items, with a bar on standard error where that is a terminal; loops inside have theirs below it."""
    if _shown:
        outer = _shown[-1]
        task = outer.add_task(description, total=len(items))
        try:
            yield from outer.track(items, total=len(items), task_id=task)
        finally:
            outer.remove_task(task)
        return
    console = Console(stderr=True)
    # What is printed meanwhile must go round the bar on a terminal, and stay on standard output everywhere else.
    redirected = console.is_terminal and sys.stdout.isatty()
    with Progress(
        console=console, transient=True, disable=not console.is_terminal, redirect_stdout=redirected
    ) as progress:
        _shown.append(progress)
        try:
            yield from progress.track(items, total=len(items), description=description)
        finally:
            _shown.remove(progress)
