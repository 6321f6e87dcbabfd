"""Weakly supervised audio-visual event classification and localisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from avfast.inference import Localizer

__version__ = "0.1.0"
__all__ = ["__version__", "build_info", "load"]


def build_info() -> dict[str, Any]:
    """How the native module was built.

    Returns:
        ``version`` of the package, ``cuda`` (toolkit version, or None for a CPU build), ``cuda_archs``
        (list of str), ``openmp`` (bool), ``cpu_isa`` (instruction set in use) and ``compiler``.
    """
    from avfast.native import native

    return dict(native().build_info())


def load(run: str | os.PathLike[str], device: str = "auto", edge_model: Path | None = None) -> Localizer:
    """Read a trained run; ``load(run).predict(video)`` gives what ``avfast.localize`` writes.

    Args:
        run: The folder that ``avfast.train`` wrote, or the file that ``avfast.export`` made of it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        edge_model: OpenCV's structured edge forest, if the run's clips were prepared with one.

    Returns:
        The model, ready for videos of any length.

    Raises:
        InputError: The folder holds no run that can be used.
    """
    from pathlib import Path

    from avfast.inference import Localizer
    from avfast.runs import load_best, pick_device

    return Localizer(Path(run), load_best(Path(run), pick_device(device)[0]), edge_model)
