"""The Sphinx extension of this documentation: the directive ``generated`` and the reading of docstrings.

In a page, a block whose language is ``{generated} zoo.classifiers`` is replaced by the Markdown that the function
``classifiers`` of ``docs/generate/zoo.py`` returns; a second word is passed to it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from docs.generate.docstrings import as_rst


class Generated(SphinxDirective):
    """The Markdown that a function of this package returns, parsed where the directive stands."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, function = self.arguments[0].partition(".")
        text = getattr(import_module(f"docs.generate.{module}"), function)(*self.arguments[1:])
        return self.parse_text_to_nodes(text, offset=self.content_offset, allow_section_headings=True)


def read_docstring(app: Sphinx, kind: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """Replace the lines of a docstring by their reStructuredText."""
    lines[:] = as_rst(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("sphinx.ext.autodoc")
    app.add_directive("generated", Generated)
    app.connect("autodoc-process-docstring", read_docstring)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
