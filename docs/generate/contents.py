"""The table of contents: the pages below, and every other page of ``docs`` and ``docs/kernels`` where it belongs."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
# "Use" takes the pages that no part names, "Kernels" those of the folder kernels, in alphabetical order.
PARTS = {
    "Start": ["install", "quickstart", "troubleshooting"],
    "Models": ["zoo", "models", "vim_fastvim", "forward_types", "architecture", "weights"],
    "Use": ["training", "recipes"],
    "Kernels": ["kernels", "benchmarks"],
    "Reference": ["api/vmamba", "api/models", "api/weights", "api/kernels"],
}


def tree() -> str:
    """Return the tables of contents of the first page, one a part."""
    named = {page for pages in PARTS.values() for page in pages}
    rest = {
        "Use": [page.stem for page in sorted(DOCS.glob("*.md")) if page.stem not in {*named, "index"}],
        "Kernels": [f"kernels/{page.stem}" for page in sorted((DOCS / "kernels").glob("*.md"))],
    }
    return "\n".join(
        f":::{{toctree}}\n:caption: {caption}\n:hidden:\n\n" + "\n".join([*pages, *rest.get(caption, [])]) + "\n:::\n"
        for caption, pages in PARTS.items()
    )


if __name__ == "__main__":
    print(tree())
