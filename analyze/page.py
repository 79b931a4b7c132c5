"""One HTML page of several analyses that needs no other file: pictures inside, tables, and what it ran on."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from analyze.output import Analysis, cell, columns

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption, .method { color: #555; font-size: 13px; }
table { border-collapse: collapse; font-size: 13px; margin: .5rem 0 1rem; display: block; overflow-x: auto; }
th, td { padding: .15rem .6rem; border-bottom: 1px solid #eee; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } caption { text-align: left; font-weight: 600; }
details { margin: .5rem 0; } nav a { margin-right: 1rem; } .missing { color: #933; }
"""
LONG = 24  # rows, above which a table is folded


def page(
    title: str,
    about: Mapping[str, str],
    analyses: Sequence[Analysis],
    left_out: Mapping[str, str],
    environment: Mapping[str, str],
) -> str:
    """Return the page: facts about the model, the analyses, those left out with the reason, the environment."""
    links = "".join(f'<a href="#{escape(a.name)}">{escape(a.title)}</a>' for a in analyses)
    missing = "".join(f'<p class="missing">{escape(n)} is left out: {escape(why)}</p>' for n, why in left_out.items())
    parts = [
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>",
        # An empty icon, or a browser would ask for one.
        f"<link rel='icon' href='data:,'><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>{_facts(about)}<nav>{links}</nav>{missing}",
        *(_section(analysis) for analysis in analyses),
        f"<h2 id='environment'>Environment</h2>{_facts(environment)}</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _section(analysis: Analysis) -> str:
    figures = "".join(_figure(caption, path) for caption, path in analysis.pictures.items())
    tables = "".join(_table(caption, rows) for caption, rows in analysis.tables.items())
    method = f"<p class='method'>Method: {escape(analysis.method)}</p>"
    return f"<section><h2 id='{escape(analysis.name)}'>{escape(analysis.title)}</h2>{figures}{tables}{method}</section>"


def _figure(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f"<img alt='{escape(caption, quote=True)}' src='data:image/png;base64,{data}'>"
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(caption: str, rows: Sequence[Mapping[str, Any]]) -> str:
    names = columns([dict(row) for row in rows])
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell(row.get(n)))}</td>" for n in names) + "</tr>" for row in rows)
    table = f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>{body}</table>"
    return table if len(rows) <= LONG else f"<details><summary>{escape(caption)}</summary>{table}</details>"


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f"<table>{rows}</table>"
