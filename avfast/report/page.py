"""Pages that open offline: templates with styles, scripts and data inside, and no request to any host."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

ASSETS = Path(__file__).parent / "assets"


def render(template: str, **values: Any) -> str:
    """Fill a template.

    Args:
        template: File in ``assets``.
        **values: Its variables; text in them is escaped wherever it is shown.

    Returns:
        The HTML page.
    """
    return _environment().get_template(template).render(**values)


def as_json(value: Any) -> Markup:
    """A value for a ``<script type="application/json">``, which no text in it can leave."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def as_base64(data: bytes) -> Markup:
    """Bytes for an attribute or a script element."""
    return Markup(base64.b64encode(data).decode("ascii"))


def asset(name: str) -> Markup:
    """A file of ``assets``, to stand in the page as it is."""
    return Markup((ASSETS / name).read_text(encoding="utf-8"))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(asset=asset)
    environment.filters.update(as_json=as_json, as_base64=as_base64)
    return environment
