"""The colours that classes are drawn in, everywhere: told apart with any kind of colour vision."""

from __future__ import annotations

PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7",
    "#56b4e9", "#8800ff", "#aacc77", "#774422", "#990066",
    "#bb55ff", "#ffbbcc", "#4433bb", "#ee1155", "#00ee44",
    "#882288", "#bb9944", "#aa5522", "#88cc99", "#dd00bb",
)  # fmt: skip
"""Six of Okabe and Ito's colours, then always the one that differs most from all before it, under full colour
vision, protanopia, deuteranopia and tritanopia (as Machado et al. 2009 simulate them)."""

INK, PAPER = "#000000", "#ffffff"

_RED, _GREEN, _BLUE = 0.2126, 0.7152, 0.0722  # of relative luminance, sRGB


def class_colour(index: int) -> str:
    """The colour of a run's class by its position, as ``#rrggbb``; beyond the palette it begins again.

    What is drawn in it also bears the class's name: colour is never the only mark.
    """
    return PALETTE[index % len(PALETTE)]


def text_on(colour: str) -> str:
    """Black or white, whichever is the more legible on ``#rrggbb`` (WCAG 2 contrast)."""
    light = luminance(colour)
    return INK if (light + 0.05) ** 2 > 0.05 * 1.05 else PAPER


def rgb(colour: str) -> tuple[int, int, int]:
    """``#rrggbb`` as numbers, 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb``, 0 to 1 (WCAG 2)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb(colour))
    ]
    return sum(weight * value for weight, value in zip((_RED, _GREEN, _BLUE), linear, strict=True))
