"""The project's docstrings as reStructuredText, which is what the API reference is made of.

They are plain text: names in single backticks, blank lines between paragraphs, sections such as ``Args:`` whose
entries read ``name: what it is``, and ``::`` before an indented block that stays as it is.
"""

from __future__ import annotations

import re

SECTIONS = ("Args", "Raises", "Returns")
_SECTION = re.compile(rf"^({'|'.join(SECTIONS)}):\s*(.*)$")
_ENTRY = re.compile(r"^([`\w][`\w, .*]*): (?=\S)")
_CODE = re.compile(r"``[^`]+``|`[^`]+`")


def as_rst(lines: list[str]) -> list[str]:
    """Return the lines of a docstring, without its common indent, as reStructuredText."""
    result: list[str] = []
    literal = False
    for paragraph in _paragraphs(lines):
        if literal and paragraph[0].startswith(" "):
            result += [*paragraph, ""]
            continue
        literal = paragraph[-1].endswith("::")
        result += [*_paragraph(paragraph), ""]
    return result


def _paragraphs(lines: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line.rstrip())
        elif found[-1]:
            found.append([])
    return [paragraph for paragraph in found if paragraph]


def _paragraph(paragraph: list[str]) -> list[str]:
    section = _SECTION.match(paragraph[0])
    if section:
        title = {"Args": "Arguments"}.get(section[1], section[1])
        rest = [section[2]] if section[2] else []
        entries = _entries(_dedented(rest + _dedented(paragraph[1:])))
        return [f"**{title}**", "", *(entries or [_escaped(line.strip()) for line in rest + paragraph[1:]])]
    if all(line.startswith(" ") for line in paragraph):
        return ["::", "", *paragraph]
    starts = [line for line in paragraph if not line.startswith(" ")]
    if len(starts) > 1 and all(_ENTRY.match(line) for line in starts):
        return _entries(paragraph)
    return [_escaped(line.strip()) for line in paragraph]


def _dedented(lines: list[str]) -> list[str]:
    indent = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    return [line[indent:] for line in lines]


def _entries(lines: list[str]) -> list[str]:
    """A bullet for each entry, its continuation lines joined to it; [] where a line is no entry."""
    bullets: list[str] = []
    for line in lines:
        entry = _ENTRY.match(line)
        if entry and not line.startswith(" "):
            names = ", ".join(f"``{name.strip(' `')}``" for name in entry[1].split(","))
            bullets.append(f"- {names}: {_escaped(line[entry.end() :])}")
        elif bullets:
            bullets[-1] += f" {_escaped(line.strip())}"
        else:
            return []
    return bullets


def _escaped(text: str) -> str:
    """Text in which only code stands out: backticks become literals, other marks are escaped."""
    parts, end = [], 0
    for found in _CODE.finditer(text):
        parts += [_plain(text[end : found.start()]), f"``{found[0].strip('`')}``"]
        end = found.end()
        if text[end : end + 1].isalnum():
            parts.append("\\ ")
    return "".join([*parts, _plain(text[end:])])


def _plain(text: str) -> str:
    return re.sub(r"[\\*|`]|(?<=\w)_(?!\w)", lambda mark: f"\\{mark[0]}", text)
