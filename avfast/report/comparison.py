"""The tables and figures of a comparison of systems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avfast.data.files import write_json, write_text
from avfast.data.label_lists import DCASE2017_CLASSES
from avfast.report.colours import INK, PALETTE, PAPER
from avfast.report.comparison_page import comparison_page
from avfast.report.figure import save

SOUND_COLOUR, PICTURE_COLOUR, BOTH_COLOUR = PALETTE[0], PALETTE[1], INK
MODALITY_COLOURS = {"audio": SOUND_COLOUR, "video": PICTURE_COLOUR}
MODALITY_NAMES = {"audio": "sound", "video": "picture"}

COLUMNS = {
    "micro_f1": "micro F1",
    "micro_precision": "P",
    "micro_recall": "R",
    "macro_f1": "macro F1",
    "map": "mAP",
    "auc": "ROC area",
    "corloc": "CorLoc",
    "pointing": "pointing",
    "visual_segment_f1": "picture segment F1",
    "visual_segment_er": "picture segment ER",
    "segment_f1": "segment F1",
    "segment_er": "segment ER",
}
"""Figures of a system in the table, and their headings."""

PUBLISHED = {
    "av-two-stream": (64.2, 59.7, 69.4),
    "audio-two-stream": (57.3, 53.2, 62.0),
    "video-two-stream": (47.3, 48.5, 46.1),
    "video-wsddn": (48.8, 47.6, 50.1),
    "av-one-stream": (55.3, 50.4, 61.2),
    "cvssp-fusion": (55.6, 61.4, 50.8),
    "gated-crnn": (54.2, 58.9, 50.2),
}
"""Micro F1, precision and recall in per cent on DCASE 2017 task 4, as recalled from Parekh et al. 2018."""


def write_report(comparison: Mapping[str, Any], folder: Path) -> str:
    """Write ``table.json``, ``table.md``, ``per_class.png`` and ``report.html``, and where its systems are
    there ``complementarity.json`` and ``complementarity.png``.

    Args:
        comparison: What ``avfast.comparison.compare`` returned.
        folder: Where the files go; must exist.

    Returns:
        What ``table.md`` holds.
    """
    text = markdown(comparison)
    write_json(folder / "table.json", comparison)
    write_text(folder / "table.md", text)
    scored = {name: entry for name, entry in comparison["systems"].items() if entry["mean"]}
    if scored:
        classes = comparison["classes"]
        figure = Figure(figsize=(3 + 0.7 * len(classes), 1.6 + 0.45 * len(scored)), layout="constrained")
        values = np.array([[entry["per_class"][name] for name in classes] for entry in scored.values()])
        draw_per_class(figure.subplots(), values, list(scored), classes)
        save(figure, folder / "per_class.png")
    parts = comparison["complementarity"]
    if parts:
        write_json(folder / "complementarity.json", parts)
        figure = Figure(figsize=(11, 1.8 + 0.4 * len(parts)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        draw_shares(left, parts)
        draw_alone_and_silenced(right, parts)
        save(figure, folder / "complementarity.png")
    write_text(folder / "report.html", comparison_page(text, folder))
    return text


def markdown(comparison: Mapping[str, Any]) -> str:
    """The tables of a comparison, for a person to read."""
    systems = comparison["systems"]
    lines = [
        "# Comparison",
        "",
        f"{comparison['clips']} test clips, {len(comparison['classes'])} classes; ± is the standard "
        "deviation over seeds. Time is that of training and evaluating one seed, on the clock and on all "
        "cores.",
        "",
        *_systems_table(systems),
        *_failures(systems),
        *_published(comparison["classes"], systems),
        *_differences(comparison["differences"]),
        *_complementarity(comparison["complementarity"]),
    ]
    return "\n".join(lines) + "\n"


def draw_per_class(axes: Axes, values: np.ndarray, systems: Sequence[str], classes: Sequence[str]) -> Axes:
    """Draw F1 as a map of numbers.

    Args:
        axes: Where.
        values: [S, C] in [0, 1].
        systems: S names.
        classes: C names.

    Returns:
        The axes.
    """
    axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = PAPER if value < 0.5 else INK
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(systems)), systems)
    axes.set_title("F1 of each class")
    return axes


def draw_shares(axes: Axes, parts: Mapping[str, Mapping[str, Any]]) -> Axes:
    """Draw how the F1 of sound and picture together divides between them, a bar a class.

    Args:
        axes: Where.
        parts: What ``avfast.comparison.complementarity`` returned.

    Returns:
        The axes.
    """
    rows = np.arange(len(parts))
    ends = {True: np.zeros(len(parts)), False: np.zeros(len(parts))}  # shares that add, and that take away
    for modality, colour in MODALITY_COLOURS.items():
        shares = np.array([part["shapley"][modality] for part in parts.values()])
        starts = np.where(shares >= 0, ends[True], ends[False])
        hatch = None if modality == "audio" else "//"
        axes.barh(rows, shares, left=starts, color=colour, hatch=hatch, label=MODALITY_NAMES[modality])
        for adds in ends:
            ends[adds] += np.where((shares >= 0) == adds, shares, 0)
    both = [part["both"] for part in parts.values()]
    axes.plot(both, rows, "D", color=BOTH_COLOUR, markersize=4, linestyle="", label="both")
    axes.set_title("F1 of both, divided by Shapley value")
    return _rows(axes, list(parts))


def draw_alone_and_silenced(axes: Axes, parts: Mapping[str, Mapping[str, Any]]) -> Axes:
    """Draw the F1 of each modality trained alone, of both, and of both with one silenced; a row a class.

    Args:
        axes: Where.
        parts: What ``avfast.comparison.complementarity`` returned.

    Returns:
        The axes.
    """
    rows = np.arange(len(parts))
    marks = {
        "audio": ("o", SOUND_COLOUR, "full", "sound, trained alone"),
        "silenced_video": ("o", SOUND_COLOUR, "none", "sound of both (picture silenced)"),
        "video": ("s", PICTURE_COLOUR, "full", "picture, trained alone"),
        "silenced_audio": ("s", PICTURE_COLOUR, "none", "picture of both (sound silenced)"),
        "both": ("D", BOTH_COLOUR, "full", "both"),
    }
    for key, (marker, colour, fill, label) in marks.items():
        values = [part[key] for part in parts.values()]
        axes.plot(values, rows, marker, color=colour, fillstyle=fill, label=label)
    axes.set_title("F1 that each achieves")
    return _rows(axes, list(parts))


def _rows(axes: Axes, names: Sequence[str]) -> Axes:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(min(0.0, axes.get_xlim()[0]), 1.02)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=3.5, ncols=2, fontsize=8)
    return axes


def _systems_table(systems: Mapping[str, Any]) -> list[str]:
    shown = [key for key in COLUMNS if any(key in (entry["mean"] or {}) for entry in systems.values())]
    rows = [["system", *(COLUMNS[key] for key in shown), "parameters (learned)", "time", "CPU time"]]
    for name, entry in systems.items():
        if not entry["mean"]:
            rows.append([name, _state(entry), *[""] * (len(rows[0]) - 2)])
            continue
        spread = entry["spread"] or {}
        rows.append([name, *(_figure(entry["mean"].get(key), spread.get(key)) for key in shown)])
        rows[-1] += [
            f"{_count(entry['parameters'])} ({_count(entry['learned_parameters'])})",
            f"{entry['seconds']:.0f} s",
            f"{entry['cpu_seconds']:.0f} s",
        ]
    return _table(rows)


def _failures(systems: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {name}, seed {seed}: {run['error']}"
        for name, entry in systems.items()
        for seed, run in entry["runs"].items()
        if run.get("error")
    ]
    return ["", "Failed:", "", *lines] if lines else []


def _state(entry: Mapping[str, Any]) -> str:
    return "failed" if any(run.get("error") for run in entry["runs"].values()) else "not run yet"


def _published(classes: Sequence[str], systems: Iterable[str]) -> list[str]:
    if tuple(classes) != DCASE2017_CLASSES:
        return []
    rows = [["system", "micro F1", "P", "R"]]
    rows += [[name, *(f"{x:.1f}" for x in PUBLISHED[name])] for name in systems if name in PUBLISHED]
    return [
        "",
        "## As published",
        "",
        "Per cent, by Parekh et al. 2018 on the whole challenge data; as recalled, not checked against it.",
        "",
        *_table(rows),
    ]


def _differences(differences: Mapping[str, Any] | None) -> list[str]:
    if not differences or not differences["systems"]:
        return []
    first = differences["against"]
    rows = [[f"{first} minus", "micro F1", "95 % interval", f"{first} ahead", "behind"]]
    rows += [
        [
            name,
            f"{d['difference']:+.3f}",
            f"{d['low']:+.3f} to {d['high']:+.3f}",
            f"{d['ahead']:.1%}",
            f"{d['behind']:.1%}",
        ]
        for name, d in differences["systems"].items()
    ]
    return [
        "",
        "## Differences",
        "",
        "Paired bootstrap over the test clips, seeds averaged; shares of resamples.",
        "",
        *_table(rows),
    ]


def _complementarity(parts: Mapping[str, Any] | None) -> list[str]:
    if not parts:
        return []
    rows = [
        [
            "class",
            "sound alone",
            "picture alone",
            "both",
            "gain",
            "share of sound",
            "share of picture",
            "picture silenced",
            "sound silenced",
            "share of sound, silencing",
            "share of picture, silencing",
        ]
    ]
    rows += [[name, *(f"{value:.3f}" for value in _parts(part))] for name, part in parts.items()]
    return [
        "",
        "## Complementarity",
        "",
        "F1 of sound and picture trained alone, of the audio-visual system, and of that system with one "
        "modality silenced. The gain is that of both over the better one alone. The shares are Shapley "
        "values, which sum to the F1 of both, as a system that neither hears nor sees predicts nothing: "
        "first from the systems trained alone, then from the silenced one.",
        "",
        *_table(rows),
    ]


def _parts(part: Mapping[str, Any]) -> list[float]:
    apart, silenced = part["shapley"], part["shapley_silenced"]
    return [
        *(part[key] for key in ("audio", "video", "both", "gain")),
        *(apart["audio"], apart["video"]),
        *(part["silenced_video"], part["silenced_audio"]),
        *(silenced["audio"], silenced["video"]),
    ]


def _figure(mean: float | None, spread: float | None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.3f}" if spread is None else f"{mean:.3f} ± {spread:.3f}"


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.0f} k"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells, the first being the heading, as a Markdown table."""
    head, *body = (f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows)
    return [head, "|" + " --- |" * len(rows[0]), *body]
