"""What all figures share: letters of any script, and PNG files that are either whole or absent."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text

from avfast.data.files import write_bytes

DPI = 120

FONTS = (
    "DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "Hiragino Sans",
    "Microsoft YaHei", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai",
    "Arial Unicode MS",
)  # fmt: skip
"""A letter comes from the first of these that is installed and has it."""


@contextmanager
def any_script() -> Iterator[None]:
    """Draw text with letters that the usual font lacks; a letter that no font has becomes a box, silently."""
    with rc_context({"font.family": _installed()}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


@cache
def _installed() -> list[str]:
    names = set(font_manager.get_font_names())
    return [name for name in FONTS if name in names]


def save(figure: Figure, path: Path, dpi: float = DPI) -> None:
    """Write a figure as PNG, atomically."""
    write_bytes(path, png(figure, dpi))


def png(figure: Figure, dpi: float = DPI) -> bytes:
    """A figure as PNG."""
    file = io.BytesIO()
    _plain_text(figure)
    with any_script():
        figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def svg(figure: Figure) -> bytes:
    """A figure as SVG, the same bytes each time; its text stays text, which a browser has the letters for."""
    file = io.BytesIO()
    _plain_text(figure)
    with any_script(), rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _plain_text(figure: Figure) -> None:
    """Names as they are: no formulas, and any letters, also in texts made outside of ``any_script``."""
    for text in figure.findobj(Text):
        if text.get_fontfamily() == ["sans-serif"]:
            text.set_fontfamily(_installed())
        text.set_parse_math(False)
