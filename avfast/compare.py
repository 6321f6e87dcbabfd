"""Train several systems over several seeds on the same data, and write a table of how they compare.

Without --data it compares on the embedded default. Every run is a child process: one that fails becomes a row
that says so; on a CPU two go on at once. Started again with the same --out, finished runs are kept and broken
ones go on; systems and seeds may be added. All options of avfast.train are passed on. Commands to start from:

    python -m avfast.compare --out runs/comparison
    python -m avfast.compare --data shards --backbone efficientnet-lite0 --seeds 0 1 2 --out runs/real-table
    python -m avfast.compare --systems av-two-stream av-one-stream --epochs 5 --out runs/streams
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields, replace
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from avfast import checkpoint, sources, train
from avfast.cli import run
from avfast.comparison import PAPER_ORDER, Run, compare, read_result
from avfast.data.files import TEMPORARY_PREFIX, exclusive, read_json, write_json
from avfast.errors import InputError
from avfast.models import SYSTEMS
from avfast.report.comparison import write_report

CPU_JOBS = 2  # small networks keep no more than a core or two busy, and every run takes memory
HEARTBEAT = 5.0  # s between two notes of the time that a run has taken
PER_RUN = {"out", "system", "seed", "resume"}
HARMLESS = {"device", "workers", "cache_gib", "log_every", "save_every", "tensorboard", "report"}
"""Training options that may differ between runs that are compared."""


WEIGHTS = {"visual": ("visual_weights",), "audio": ("audio_weights", "vggish_pca")}
"""Training options that systems without the modality's network refuse."""

TIMES = ("seconds", "cpu_seconds")
OPTIONS = "options.json"


@dataclass(frozen=True)
class Files:
    """What one run leaves under ``runs/``."""

    folder: Path
    """The run itself, as avfast.train writes it."""
    log: Path
    """What it printed."""
    account: Path
    """The time it took, and whether it finished."""


def paper_order() -> list[str]:
    """Every system, those of the paper's table first and in its order."""
    return [name for name in PAPER_ORDER if name in SYSTEMS] + [n for n in SYSTEMS if n not in PAPER_ORDER]


@dataclass
class Options(train.Options):
    out: Path = Path("runs/comparison")
    """Folder for table.md, table.json, the figures, and the runs themselves under runs/."""
    systems: list[str] = field(default_factory=paper_order)
    """Which systems, in the order of the table; the others are measured against the first. Default: all."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Each system is trained once with every seed."""
    jobs: int | None = None
    """Runs at once, which share cores and --cache-gib. Default: two on a CPU, one on a GPU."""
    system: tyro.conf.Suppress[str] = "av-two-stream"
    seed: tyro.conf.Suppress[int] = 0
    resume: tyro.conf.Suppress[bool] = False


def main(options: Options) -> None:
    """Train what is missing, and write the comparison."""
    check_names(options)
    train.check_numbers(options)
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs: expected a number of at least 1, got {options.jobs}")
    data = options.source()
    config = train.model_config(options, data)
    sources.open_split(data, "test", config)  # bad data, or none yet: before any run
    options.out.mkdir(parents=True, exist_ok=True)
    with exclusive(options.out):
        check_folder(options)
        table = train_all(options)
    print(table)


def check_names(options: Options) -> None:
    """Refuse systems that do not exist, and nothing to do."""
    unknown = [name for name in options.systems if name not in SYSTEMS]
    if unknown:
        raise InputError(f"--systems: expected some of {', '.join(SYSTEMS)}, got {', '.join(unknown)}")
    for name in ("systems", "seeds"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise InputError(f"--{name}: expected one or more, each once")


def check_folder(options: Options) -> None:
    """Refuse to mix runs of different options in one table."""
    path = options.out / OPTIONS
    now = shared_options(options)
    if path.is_file():
        before = read_json(path, "choose another --out")
        changed = [name for name in now if now[name] != before.get(name)]
        if changed:
            raise InputError(
                f"{options.out}: holds a comparison with other options ({', '.join(changed)} differ); "
                "repeat those, or choose another --out"
            )
    elif any(not file.name.startswith(TEMPORARY_PREFIX) for file in options.out.iterdir()):
        raise InputError(f"{options.out}: not empty, and no comparison; choose another --out")
    write_json(path, now)


def shared_options(options: Options) -> dict[str, Any]:
    """What all runs of a table must have in common, as JSON keeps it."""
    names = [entry.name for entry in fields(train.Options) if entry.name not in PER_RUN | HARMLESS]
    values = {name: getattr(options, name) for name in names}
    paths = {name: str(value.resolve()) for name, value in values.items() if isinstance(value, Path)}
    return json.loads(json.dumps(values | paths))


def train_all(options: Options) -> str:
    """Train every run that is not finished; the report is written after each.

    Returns:
        The report, as Markdown.

    Raises:
        InputError: Every run failed.
    """
    runs = [kept(options.out, system, seed) for system in options.systems for seed in options.seeds]
    missing = [position for position, planned in enumerate(runs) if planned.result is None]
    with tqdm(total=len(runs), initial=len(runs) - len(missing), unit="run", disable=None) as bar:
        for position, ended in attempts(options, runs, missing):
            runs[position] = ended
            write_report(compare(runs), options.out)
            tqdm.write(describe(ended))
            bar.update()
    failed = [run for run in runs if run.result is None]
    if len(failed) == len(runs):
        raise InputError(f"every run failed; {describe(failed[0])}")
    return write_report(compare(runs), options.out)


def attempts(options: Options, runs: list[Run], missing: list[int]) -> Iterator[tuple[int, Run]]:
    """Train the missing runs, some at once: positions and what became of them, as they end."""
    jobs = min(options.jobs or default_jobs(options.device), max(1, len(missing)))
    shared = replace(options, jobs=jobs, cache_gib=options.cache_gib / jobs)
    with ThreadPoolExecutor(jobs) as pool:  # a thread does nothing but wait for its child process
        waiting = {pool.submit(attempt, shared, runs[position]): position for position in missing}
        try:
            for ended in as_completed(waiting):
                yield waiting[ended], ended.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def default_jobs(device: str) -> int:
    """How many runs at once suit a device: on a GPU they would take its memory from each other."""
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return 1 if on_gpu else min(CPU_JOBS, torch.get_num_threads())


def kept(out: Path, system: str, seed: int) -> Run:
    """A run as an earlier comparison left it: with its result, if it was finished."""
    account = read_account(files(out, system, seed).account)
    if not account["finished"]:
        return Run(system, seed, None)
    return Run(system, seed, read_result(files(out, system, seed).folder, account))


def attempt(options: Options, planned: Run) -> Run:
    """Train one run in a child process, from its last checkpoint if it has one."""
    place = files(options.out, planned.system, planned.seed)
    place.folder.parent.mkdir(exist_ok=True)
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            told = training_options(options, planned, place.folder)
            pool.submit(child, told, place, options.jobs or 1).result()
        return kept(options.out, planned.system, planned.seed)
    except InputError as error:
        reason = str(error)
    except BrokenProcessPool:
        reason = f"its process was killed, perhaps for want of memory; see {place.log}"
    except Exception as error:  # whatever a system does wrong, the others are still compared
        reason = f"{type(error).__name__}: {error}; see {place.log}"
        with place.log.open("a") as log:
            log.write(f"{error.__cause__ or error}\n")
    return Run(planned.system, planned.seed, None, " ".join(reason.split()))


def training_options(options: Options, planned: Run, folder: Path) -> train.Options:
    """What avfast.train is told: all that compare was, without weights of networks that the system lacks."""
    values = {entry.name: getattr(options, entry.name) for entry in fields(train.Options)}
    values |= {"out": folder, "system": planned.system, "seed": planned.seed}
    values |= {"resume": checkpoint.resumable(folder)}
    modalities = getattr(SYSTEMS[planned.system], "modalities", ())
    for modality, names in WEIGHTS.items():
        if modality not in modalities:
            values |= dict.fromkeys(names)
    return train.Options(**values)


def child(options: train.Options, place: Files, jobs: int) -> None:
    """What the child process does: train, keep account of the time, and end when its parent does."""
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    with place.log.open("a") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    account = Account(place.account)
    threading.Thread(target=account.keep, daemon=True).start()
    train.main(options)
    account.note(finished=True)


class Account:
    """The time that a run has taken, over all its attempts, in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.before = path, read_account(path)
        self.started, self.lock = (time.monotonic(), cpu_seconds()), threading.Lock()
        self.closed = False

    def keep(self) -> None:
        """Note the time now and then; a parent that was killed takes this process with it."""
        parent = parent_process()
        assert parent is not None
        while not connection.wait([parent.sentinel], HEARTBEAT):
            self.note()
        os._exit(1)

    def note(self, finished: bool = False) -> None:
        """Write the time up to now; nothing more is written once the run is finished."""
        with self.lock:
            if not self.closed:
                spent = (time.monotonic() - self.started[0], cpu_seconds() - self.started[1])
                times = {name: self.before[name] + t for name, t in zip(TIMES, spent, strict=True)}
                write_json(self.path, {**times, "finished": finished})
                self.closed = finished


def read_account(path: Path) -> dict[str, Any]:
    """What an ``Account`` has written, or nothing yet."""
    if not path.is_file():
        return dict.fromkeys(TIMES, 0.0) | {"finished": False}
    return read_json(path, "delete it, and its run goes on from its checkpoint")


def cpu_seconds() -> float:
    """Time that this process and its finished children have spent on all cores."""
    return sum(os.times()[:4])


def files(out: Path, system: str, seed: int) -> Files:
    """Where things of one run are."""
    name = f"{system}-{seed}"
    folder = out / "runs" / name
    return Files(folder, folder.with_name(f"{name}.log"), folder.with_name(f"{name}.json"))


def describe(ended: Run) -> str:
    """A line about how a run ended."""
    name = f"{ended.system}, seed {ended.seed}"
    if ended.result is None:
        return f"{name}: {ended.error}"
    return f"{name}: micro-F1 {ended.result.figures['micro_f1']:.3f} in {ended.result.seconds:.0f} s"


if __name__ == "__main__":
    run(main, Options)
