"""The gallery of analyses: every picture of ``docs/images`` that a JSON file tells of, with how it was made."""

from __future__ import annotations

import json
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[1] / "images"


def pictures(folder: Path = IMAGES) -> str:
    """Return Markdown: the pictures that are there, each under its title and above its method."""
    lines: list[str] = []
    for path in sorted(folder.glob("*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        for caption, name in about["pictures"].items():
            if (folder / name).is_file():
                lines += [f"**{about['title']}**, {about['date'][:10]}", "", f"![{caption}](images/{name})", ""]
                lines += [f"`{about['command']}` on {about['machine']}. " + about["method"].replace("|", "\\|"), ""]
    return "\n".join(lines) or "There is no picture yet."


if __name__ == "__main__":
    print(pictures())
