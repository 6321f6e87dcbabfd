"""What a run of training is told besides what to learn: its data, its folder, its guards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avfast import sources
from avfast.data.features import CLIP_SECONDS
from avfast.evaluation import ThresholdRule
from avfast.guards import OnNaN
from avfast.sources import DataSource


@dataclass
class RunOptions:
    """Where a run is kept, and how; nothing of this but the seed changes what is learned."""

    data: Path | None = None
    """Folder that avfast.prepare wrote; the embedded default when left out."""
    features: Path | None = None
    """Folder of feature bags in place of --data: visual/CLIP.npy ([P, D] or [T, h, w, D]) and audio/CLIP.npy
    ([A, D]), CLIP.npz with both, or HDF5 files as AVE's. No video is needed."""
    labels: Path | None = None
    """Labels of --features: labels.csv, or a folder with the lists of LLP or AVE. Default: there."""
    clip_seconds: float = CLIP_SECONDS
    """Length of the clips of --features, over which their instances are spread evenly."""
    out: Path = Path("runs/av-two-stream")
    """Folder of the run; must be new or empty, unless --resume is given."""
    resume: bool = False
    """Go on from the last checkpoint in --out; all other options must be as they were."""
    seed: int = 0
    """Decides the initial weights, dropout and the order of clips."""
    deterministic: bool = False
    """The same weights, bit for bit, each time this command runs on such a machine with as many threads and
    ranks; ends with an error where an operation has no deterministic form. Slower on a GPU."""
    thresholds: ThresholdRule = "global"
    """Chosen on validation: one for all classes, for micro-F1, or one per class, for the class's own F1."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = 0
    """Processes that read clips; 0 reads in the training process, which then keeps clips in memory."""
    cache_gib: float = 2.0
    """Memory for clips and for regions of frozen conv layers, in GiB; the rest is made anew each time."""
    cached_features: bool = True
    """Read regions from the conv maps that avfast.prepare --cache-features stored, where there are some."""
    log_every: int = 10
    """Steps from one line in metrics.jsonl to the next."""
    save_every: int = 100
    """Steps between checkpoints, besides the one after each epoch."""
    tensorboard: bool = False
    """Also write events for TensorBoard into --out (needs avfast[tensorboard])."""
    on_nan: OnNaN = "stop"
    """When loss or gradient are not finite: stop, or skip the step, count it and name its clips."""
    profile: int = 0
    """Measure so many steps after the first three: prints where their time went, and writes trace.json."""
    report: bool = True
    """Write report.html at the end: curves, classes, best and worst clips."""

    def source(self) -> DataSource:
        """Where the clips are."""
        return sources.choose(self.data, self.features, self.labels, self.clip_seconds)
