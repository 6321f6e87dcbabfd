"""Weakly supervised audio-visual event classification and localisation."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "build_info"]


def build_info() -> dict[str, Any]:
    """How the native module was built.

    Returns:
        ``version`` of the package, ``cuda`` (toolkit version, or None for a CPU build), ``cuda_archs``
        (list of str), ``openmp`` (bool), ``cpu_isa`` (instruction set in use) and ``compiler``.
    """
    from avfast.ops._library import native

    return dict(native().build_info())
