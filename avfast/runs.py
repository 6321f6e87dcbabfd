"""The folder of a run: its log, its trained model, and the data and device that a program uses with it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import avfast
from avfast import checkpoint, portable
from avfast.data.batch import Batch, Sample, collate
from avfast.data.files import write_text
from avfast.distributed import ALONE, World
from avfast.errors import InputError
from avfast.evaluation import ThresholdRule, Thresholds, join, predict_parts, summarise, write_results
from avfast.faults import Faults, Tolerant
from avfast.guards import leave_signals_to_parent
from avfast.models import ModelConfig, System, build
from avfast.sampling import in_batches
from avfast.sources import ClipDataset, DataSource, recall

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

BEST, LOG = "best.pt", "metrics.jsonl"
NAN_BATCH = "nan-batch.json"
"""The step that stopped a run, as its loss or gradient was not finite."""


@dataclass(frozen=True)
class Trained:
    """A model as training left it."""

    model: System
    classes: list[str]
    thresholds: Thresholds
    config: dict[str, Any]
    """How it was trained: ``data``, ``model``, ``recipe``, ``seed`` and more, as in ``config.json``."""

    @property
    def data(self) -> DataSource:
        """What it was trained on."""
        return recall(self.config)


def load_best(
    folder: Path,
    device: torch.device,
    thresholds: ThresholdRule | None = None,
    world: World = ALONE,
) -> Trained:
    """Read the checkpoint that did best on validation.

    Args:
        folder: Of a run, or the file that ``avfast.export`` made of it.
        device: Where the model goes.
        thresholds: Which of the thresholds chosen on validation decide; None for those it was trained with.
        world: The ranks that need it; rank 0 reads.

    Returns:
        The model, in evaluation mode, and what is needed to use it.

    Raises:
        InputError: The folder holds no run, or its checkpoint is damaged.
    """
    state = world.once(lambda: read_best(folder))
    model = build(ModelConfig(**state["config"]["model"]), len(state["classes"])).to(device)
    checkpoint.fill(model, state["model"], folder / BEST)
    chosen = Thresholds.from_state(state["thresholds"][thresholds or state["config"]["thresholds"]])
    return Trained(model.eval(), state["classes"], chosen, state["config"])


def read_best(folder: Path) -> dict[str, Any]:
    """What a run keeps of its best epoch, from its folder or from its export."""
    if folder.suffix == portable.SUFFIX and not folder.is_dir():
        return portable.load(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run; give the folder that avfast.train wrote (its --out)")
    return checkpoint.load(folder / BEST)


def evaluate(
    trained: Trained,
    dataset: ClipDataset,
    split: str,
    folder: Path,
    workers: int = 0,
    world: World = ALONE,
) -> dict[str, Any]:
    """Score a split, and write ``metrics.json`` and ``scores.csv``.

    A damaged clip is left out of all figures; ``metrics.json`` then names it under ``unreadable``.

    Args:
        trained: The model, on its device.
        dataset: The clips; must have the model's classes.
        split: What the figures call them.
        folder: Where the two files go; must exist.
        workers: Processes that read clips, in each rank.
        world: The ranks that share the clips; rank 0 writes.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: The classes differ, or too many clips are damaged.
    """
    if list(dataset.classes) != trained.classes:
        raise InputError(
            f"{dataset.root}: has the classes {', '.join(dataset.classes)}, but the run was trained on "
            f"{', '.join(trained.classes)}; give the data it was trained on, or data with these classes"
        )
    device = next(trained.model.parameters()).device
    batch_size = trained.config["recipe"]["batch_size"]
    count = math.ceil(math.ceil(len(dataset) / batch_size) / world.size)
    batches = in_batches(range(len(dataset)), batch_size, world.rank, world.size)
    faults = Faults(split, len(dataset))
    reading = load_batches(dataset, batches, workers, faults)
    progress = tqdm(reading, desc=split, total=count, unit="batch", disable=world.quiet)
    annotations = dataset.annotations()
    parts = world.collect(predict_parts(trained.model, progress, device, instances=annotations is not None))
    unreadable = sorted({clip for reasons in world.gather(faults.reasons) for clip in reasons})

    def reported() -> dict[str, Any]:
        predictions = join(parts)
        truth = None if annotations is None else annotations.of(predictions.clips)
        summary = {
            "split": split,
            "system": trained.config["model"]["system"],
            "seed": trained.config["seed"],
            **summarise(predictions, trained.thresholds, trained.classes, truth),
            **({"unreadable": unreadable} if unreadable else {}),
        }
        write_results(folder, summary, predictions, trained.classes)
        return summary

    return world.once(reported)


def load_batches(
    dataset: Dataset[Sample], batches: Iterable[Sequence[int]], workers: int, faults: Faults | None = None
) -> Iterator[Batch]:
    """Read batches of clips.

    Args:
        dataset: The clips.
        batches: Positions in the dataset, at least one in each batch.
        workers: Processes that read clips; 0 reads in this process.
        faults: Takes note of damaged clips, which are then left out of their batches; without, the first ends
            the reading.

    Raises:
        InputError: A clip cannot be read, or ``faults`` has too many of them.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset if faults is None else Tolerant(dataset),
        batch_sampler=(list(batch) for batch in batches),
        num_workers=workers,
        collate_fn=collate if faults is None else _as_it_is,
        worker_init_fn=leave_signals_to_parent,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own, as starting a loader draws from the global one
    )
    try:
        for batch in loader:
            if faults is not None:
                faults.note(batch.unreadable)
            yield batch
    except InputError as error:  # from a worker it comes with the worker's traceback in front
        raise InputError(re.sub(r"^avfast\.errors\.\w+: ", "", str(error).splitlines()[-1])) from error


def _as_it_is(batch: Any) -> Any:
    return batch


def pick_device(name: str, world: World = ALONE) -> tuple[torch.device, str]:
    """The device of an option, and a line that says which implementation of the ops runs there, and why.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        world: Of several ranks on a machine, each takes the GPU of its local rank.

    Raises:
        InputError: There is no such device, or the native module has no kernels for it.
    """
    build = avfast.build_info()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and build["cuda"] else "cpu"
    if world.size > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise InputError(f"--device {name}: every rank takes a GPU of its own; give cuda")
        if world.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"--device cuda: this machine has {torch.cuda.device_count()} GPUs, fewer than ranks; "
                "lower torchrun's --nproc-per-node"
            )
        name = f"cuda:{world.local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: not available here ({reason}); use auto or cpu") from error
    if device.type == "cuda":
        if not build["cuda"]:
            raise InputError(
                f"--device {name}: avfast was built without CUDA; build with AVFAST_CUDA=ON, or use cpu"
            )
        torch.cuda.set_device(device)
        return device, f"native CUDA {build['cuda']} kernels on {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        raise InputError(f"--device {name}: the ops run on cpu and cuda only")
    if not build["cuda"]:
        reason = "a build without CUDA"
    elif not torch.cuda.is_available():
        reason = "no CUDA device"
    else:
        reason = "as --device asks"
    return device, f"native CPU kernels, {torch.get_num_threads()} threads ({reason})"


class RunLog:
    """``metrics.jsonl``, a line per event, each with the step after which it was written."""

    def __init__(self, folder: Path, step: int, tensorboard: bool = False, main: bool = True) -> None:
        """Open the log to go on after ``step``; later lines, of a run that was killed, are dropped.

        Args:
            folder: Of the run; must exist.
            step: The last step that counts.
            tensorboard: Also write events for TensorBoard into the folder ``tensorboard``.
            main: False writes nothing: another rank does.

        Raises:
            InputError: TensorBoard is asked for and not installed.
        """
        self.path = folder / LOG
        self.main = main
        self.board: SummaryWriter | None = None
        if not main:
            return
        write_text(
            self.path, "".join(json.dumps(line) + "\n" for line in self.lines() if line["step"] <= step)
        )
        if tensorboard:
            self.board = _summary_writer(folder / "tensorboard", step + 1)

    def lines(self) -> list[dict[str, Any]]:
        """What the file holds; a last line that a kill cut short is left out."""
        if not self.path.is_file():
            return []
        return [
            json.loads(text) for text in self.path.read_text().splitlines(keepends=True) if text[-1] == "\n"
        ]

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line, which must have ``step``."""
        if not self.main:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            error.filename = str(self.path)
            raise
        if self.board is not None:
            for name, value in _scalars(line):
                self.board.add_scalar(name, value, line["step"])
            self.board.flush()


def _scalars(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif name != "step" and isinstance(value, int | float):
            yield prefix + name, value


def _summary_writer(folder: Path, first_step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard: not installed; pip install 'avfast[tensorboard]'") from error
    return SummaryWriter(str(folder), purge_step=first_step)
