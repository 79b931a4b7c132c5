"""Look into checkpoints, convert and publish them: ``python -m vmamba.weights {inspect,convert,publish} FILE``."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from vmamba.command_line import Parser
from vmamba.errors import UserError, closest, exit_on_user_error
from vmamba.models.vssm_layouts import LAYOUTS
from vmamba.weights.converting import convert
from vmamba.weights.inspecting import inspect_file, keys_table
from vmamba.weights.publishing import publish


def _inspect_parser() -> Parser:
    parser = _parser("inspect", "Say what a checkpoint holds: format, digest, model, weights, configuration.")
    parser.add_argument("--keys", action="store_true", help="every key with its type and shape instead")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def _convert_parser() -> Parser:
    parser = _parser("convert", "Write the weights of FILE to OUT, in the format that its name says.")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new file: .safetensors, .pth or .pt")
    parser.add_argument("--layout", default="present", metavar="NAME", help=f"key names: {', '.join(LAYOUTS)}")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights where there are some")
    return parser


def _publish_parser() -> Parser:
    parser = _parser("publish", "Write safetensors with the sha256 in the name, a manifest and a model card.")
    parser.add_argument("--name", metavar="MODEL", help="the model's name; needed where not exactly one model fits")
    parser.add_argument("--out", type=Path, default=Path("published"), metavar="DIR", help="folder (default published)")
    parser.add_argument("--license", default="", metavar="NAME", help="for the card, such as mit")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights where there are some")
    return parser


def _parser(command: str, description: str) -> Parser:
    parser = Parser(prog=f"{_PROGRAM} {command}", description=description)
    parser.add_argument("file", metavar="FILE", type=Path, help="a checkpoint of any format; nothing of it is run")
    parser.add_argument("--entry", metavar="NAME", help="the entry of FILE that holds the weights")
    return parser


def _inspect(options: Namespace) -> None:
    if options.keys:
        print(keys_table(options.file, options.entry))
        return
    found = inspect_file(options.file)
    print(found.json() if options.json else found.text())


def _convert(options: Namespace) -> None:
    print(convert(options.file, options.out, layout=options.layout, entry=options.entry, prefer_ema=options.ema))


def _publish(options: Namespace) -> None:
    more = dict(name=options.name, entry=options.entry, prefer_ema=options.ema, license=options.license)
    for path in publish(options.file, options.out, **more):
        print(path)


_PROGRAM = "python -m vmamba.weights"
_COMMANDS = {
    "inspect": (_inspect_parser, _inspect),
    "convert": (_convert_parser, _convert),
    "publish": (_publish_parser, _publish),
}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        for name, (make, _) in _COMMANDS.items():
            print(f"  {_PROGRAM} {name:<8} {make().description}")
        return 0 if words else 2
    if words[0] not in _COMMANDS:
        raise UserError(
            f"unknown command '{words[0]}'; it is one of {', '.join(_COMMANDS)}.{closest(words[0], _COMMANDS)}"
        )
    make, run = _COMMANDS[words[0]]
    run(make().parse(words[1:]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
