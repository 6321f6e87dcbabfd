"""Clips that cannot be read: left out of their batch, named once, and an error where they are many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch.utils.data import Dataset
from tqdm import tqdm

from avfast.data.batch import Batch, Sample, collate
from avfast.distributed import World
from avfast.errors import DamagedClip, InputError

FEW = 3
"""So many clips of a split may be unreadable, or one in a hundred: more is no accident."""

ATTEMPTS = 100
"""Clips that are tried to find the shapes of a batch without any."""


class Faults:
    """The clips of one split that could not be read."""

    def __init__(self, split: str, clips: int) -> None:
        """Args:
        split: What messages call it.
        clips: How many it has.
        """
        self.split, self.clips = split, clips
        self.reasons: dict[str, str] = {}
        """By clip."""
        self.unlogged: list[str] = []
        """Those of them that no line of the log names yet."""

    def note(self, unreadable: Mapping[str, str]) -> None:
        """Take note of a batch's unreadable clips.

        Raises:
            InputError: They have become too many.
        """
        for clip, reason in unreadable.items():
            if clip not in self.reasons:
                self.reasons[clip] = reason
                self.unlogged.append(clip)
                if len(self.reasons) > min(max(FEW, self.clips // 100), self.clips - 1):
                    raise InputError(
                        f"{reason}: {len(self.reasons)} of the {self.clips} {self.split} clips cannot be "
                        f"read, more than one in a hundred and more than {FEW}"
                    )
                tqdm.write(f"left out: {reason}")

    def news(self, world: World) -> dict[str, str]:
        """What any rank has noted since this was last called; from now on all have."""
        parts = world.gather({clip: self.reasons[clip] for clip in self.unlogged})
        found: dict[str, str] = world.once(lambda: dict(item for part in parts for item in part.items()))
        self.note(found)
        self.unlogged.clear()
        return found

    def summary(self) -> str:
        """A line that counts them; there must be some."""
        count, example = len(self.reasons), next(iter(self.reasons))
        return f"left out: {count} of {self.clips} {self.split} clips that cannot be read, such as {example}"


class Tolerant(Dataset[Batch]):
    """Batches of a dataset, without those of their clips that are damaged."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """The batch of these clips; ``DataLoader`` calls this.

        Raises:
            InputError: A whole shard is missing, or no clip can be read at all.
        """
        samples: list[Sample] = []
        unreadable: dict[str, str] = {}
        for position in positions:
            try:
                samples.append(self.dataset[position])
            except DamagedClip as error:
                unreadable[error.clip] = str(error)
        batch = collate(samples) if samples else collate([self._any()]).without_clips()
        return replace(batch, unreadable=unreadable)

    def _any(self) -> Sample:
        """A clip that can be read, whichever."""
        error = InputError("no clips")
        for position in range(min(ATTEMPTS, len(self.dataset))):  # type: ignore[arg-type]
            try:
                return self.dataset[position]
            except DamagedClip as fault:
                error = fault
        raise error
