"""Where the time of a training step goes: shares of its parts, and a trace of what ran in them."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm

WARM_UP = 3
"""Steps that are not measured: memory is taken, kernels are chosen, files are opened."""

READING, BOOKKEEPING, VALIDATION = "reading", "logs and checkpoints", "validation"
TRACE = "trace.json"


class StepProfiler:
    """Measures some steps, and the first validation that follows their beginning.

    A part lasts until the next one begins. On CUDA the device is waited for in between, so that work counts
    where it belongs; a measured step takes a little longer than others therefore.
    """

    def __init__(self, steps: int, device: torch.device, folder: Path) -> None:
        """Args:
        steps: How many to measure; 0 measures nothing.
        device: Where the steps compute.
        folder: Where ``TRACE`` is written, in the format of chrome://tracing and https://ui.perfetto.dev.
        """
        self.wanted, self.device, self.trace = steps, device, folder / TRACE
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps = -WARM_UP if steps else 0
        """Measured by now."""
        self._profile: profile | None = None
        self._part: tuple[str, float, record_function] | None = None
        self._validated = not steps

    @property
    def measuring(self) -> bool:
        """Whether the steps that are measured have begun, and not ended."""
        return 0 <= self.steps < self.wanted

    def part(self, name: str) -> None:
        """A part of a step begins, and the part before it ends."""
        validates = name == VALIDATION and not self._validated and self.steps >= 0
        if self._part is None and not self.measuring and not validates:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._end_part()
        if self.measuring or validates:
            span = record_function(name)
            span.__enter__()
            self._part = name, time.perf_counter(), span

    def step_done(self) -> None:
        """A step ends, and reading for the next one begins."""
        if self.steps >= self.wanted:
            return
        self.part(READING)
        self.steps += 1
        if self.measuring and self._profile is None:
            self._start()
        elif self.steps == self.wanted:
            self._stop()

    def close(self) -> None:
        """No step comes any more, be they as many as wanted or not."""
        if self.measuring and self.steps > 0:
            self._stop()

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.start()
        self.part(READING)

    def _stop(self) -> None:
        assert self._profile is not None
        self._end_part()
        self._profile.stop()
        self._profile.export_chrome_trace(str(self.trace))
        tqdm.write(
            "\n".join([*self.table(), f"{self.trace}: open it in chrome://tracing or ui.perfetto.dev"])
        )

    def _end_part(self) -> None:
        if self._part is None:
            return
        name, begun, span = self._part
        span.__exit__(None, None, None)
        self._part = None
        self.seconds[name] += time.perf_counter() - begun
        if name == VALIDATION:
            self._validated = True
            tqdm.write(
                f"validation took {self.seconds[name]:.2f} s, as long as {self._in_steps(name):.0f} steps"
            )

    def _in_steps(self, name: str) -> float:
        return self.seconds[name] * max(1, self.steps) / max(self._in_all(), 1e-9)

    def _in_all(self) -> float:
        return sum(seconds for name, seconds in self.seconds.items() if name != VALIDATION)

    def table(self) -> list[str]:
        """Milliseconds of a step and share of its time for each part, as lines of text."""
        whole, steps = self._in_all(), max(1, self.steps)
        rows = [(name, seconds) for name, seconds in self.seconds.items() if name != VALIDATION]
        width = max(len(name) for name, _ in rows)
        lines = [f"  {n:<{width}}  {1e3 * s / steps:9.2f} ms  {s / whole:6.1%}" for n, s in rows]
        return [f"{steps} steps of {1e3 * whole / steps:.2f} ms", *lines]
