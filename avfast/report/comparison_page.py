"""The page of a comparison: its tables and figures in one file."""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

from avfast.report.page import render

FIGURES = {"per_class.png": "F1 by class", "complementarity.png": "Sound and picture"}


def comparison_page(tables: str, folder: Path) -> str:
    """The report of a comparison.

    Args:
        tables: What ``table.md`` holds; HTML in it is shown as text.
        folder: Where the figures are, as far as there are any.

    Returns:
        A self-contained HTML document.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    pictures = [(title, folder / name) for name, title in FIGURES.items()]
    return render(
        "comparison.html.j2",
        tables=Markup(reader.render(tables)),
        figures=[(title, path.read_bytes()) for title, path in pictures if path.is_file()],
    )
