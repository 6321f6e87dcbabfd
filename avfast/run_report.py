"""``report.html`` of a run, from what training and evaluation left in its folder."""

from __future__ import annotations

from pathlib import Path

from avfast.comparison import read_scores
from avfast.data.dataset import ShardDataset
from avfast.data.files import read_json, write_text
from avfast.inference import Localizer
from avfast.report.figure import png
from avfast.report.figures import DPI, draw_overview
from avfast.report.training_page import ScoredSplit, training_page
from avfast.runs import Trained
from avfast.sources import ClipDataset

REPORT = "report.html"


def write_run_report(folder: Path, trained: Trained, dataset: ClipDataset) -> Path:
    """Write the page of a run.

    Args:
        folder: Of the run, with ``config.json``, ``metrics.json``, ``scores.csv`` and ``curves.png``.
        trained: The run's model.
        dataset: The split that was evaluated last; shards show its best and worst clips, feature bags have
            nothing to show.

    Returns:
        The page's path.

    Raises:
        InputError: One of these files is missing or damaged.
    """
    clips, scores, labels = read_scores(folder / "scores.csv", trained.classes)
    split = ScoredSplit(clips, scores, labels, trained.thresholds.scores)
    remedy = "train once more with --resume, which writes it anew"
    config, metrics = (read_json(folder / name, remedy) for name in ("config.json", "metrics.json"))
    draw_clip = None
    if isinstance(dataset, ShardDataset):
        localizer = Localizer(folder, trained)

        def draw_clip(position: int) -> bytes:
            place = list(dataset.clips).index(clips[position])  # clips that cannot be read have no scores
            found = localizer.predict_clip(clips[position], dataset.members(place))
            return png(draw_overview(found), DPI)

    page = training_page(folder.name, config, metrics, (folder / "curves.png").read_bytes(), split, draw_clip)
    write_text(folder / REPORT, page)
    return folder / REPORT
