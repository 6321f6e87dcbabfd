"""Where a run of training stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """Where training stands: after ``position`` steps of ``epoch``, ``step`` steps in all."""

    epoch: int = 0
    position: int = 0
    step: int = 0
    best: tuple[float, float] = (-1.0, -1.0)
    """Micro-F1 and mAP on validation of the best epoch; the second decides between equals of the first."""
    loss: float = 0.0
    """Sum over the steps since the last line of the log."""
    logged: int = 0
    """The step of that line."""
    lost: int = 0
    """Steps since that line that taught nothing."""
    skipped: int = 0
    """Steps that were skipped, as their loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    stale: int = 0
    """Epochs since the best one."""
