"""Figures as PNG files that are either whole or absent."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from avfast.data.files import write_bytes

DPI = 120


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    write_bytes(path, png.getvalue())
