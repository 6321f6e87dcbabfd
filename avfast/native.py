"""The compiled module, for torch's operators and for work on NumPy arrays that does without torch."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType


@cache
def native() -> ModuleType:
    """The compiled module ``avfast._C``.

    Raises:
        ImportError: If it has not been built or cannot be loaded; the message says what to run.
    """
    try:
        return importlib.import_module("avfast._C")
    except ImportError as error:
        raise ImportError(
            f"avfast's native module cannot be loaded ({error}); "
            "build it from the root of the source tree: pip install -e ."
        ) from error
