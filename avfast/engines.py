"""Where parallel work runs: processes of this machine, a Ray cluster or a Dask cluster."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from avfast.errors import InputError

EngineName = Literal["loky", "ray", "dask"]


@dataclass(frozen=True)
class Engine:
    """A pool of workers."""

    name: EngineName = "loky"
    """loky: processes of this machine. ray, dask: a cluster whose machines see the same folders."""
    workers: int | None = None
    """At most this many calls at once; None for as many as there are cores. An existing Dask cluster is
    used whole."""
    address: str | None = None
    """Of an existing cluster. None: what RAY_ADDRESS or DASK_SCHEDULER_ADDRESS says, else a local cluster
    for as long as the work lasts."""

    def __post_init__(self) -> None:
        """Refuse an address that nothing would use."""
        if self.name == "loky" and self.address is not None:
            raise InputError("--engine-address: only --engine ray and --engine dask have one")


def unordered(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], engine: Engine
) -> Iterator[tuple[int, Any]]:
    """Position and result of ``function(*call)`` for each call, in the order they come.

    ``calls`` is drawn from as results come, at most two calls a worker ahead.

    Raises:
        InputError: When the engine's package is missing, its cluster cannot be reached, or a worker died.
    """
    with _BACKENDS[engine.name](engine) as (backend, jobs):
        with joblib.parallel_config(backend):
            pool = joblib.Parallel(
                jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs"
            )
        try:
            yield from pool(joblib.delayed(_numbered)(n, function, call) for n, call in enumerate(calls))
        except TerminatedWorkerError as error:
            raise InputError(
                "a worker process died, perhaps for want of memory; run the same command again with fewer "
                "workers, it goes on where it stopped"
            ) from error


def _numbered(position: int, function: Callable[..., Any], call: tuple[Any, ...]) -> tuple[int, Any]:
    return position, function(*call)


@contextmanager
def _loky(engine: Engine) -> Iterator[tuple[str, int]]:
    yield "loky", engine.workers or joblib.cpu_count()


@contextmanager
def _ray(engine: Engine) -> Iterator[tuple[str, int]]:
    ray = _require("ray", "ray")
    backend = _require("ray.util.joblib.ray_backend", "ray").RayBackend
    # Declared for joblib's multiprocessing pool, which Ray's derives from; Ray's own works as a generator.
    streaming = type("StreamingRayBackend", (backend,), {"supports_return_generator": True})
    joblib.register_parallel_backend("ray", streaming)
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=engine.address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _unreachable(engine, error) from error
    try:
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield "ray", min(engine.workers or cores, cores)
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _dask(engine: Engine) -> Iterator[tuple[str, int]]:
    dask, distributed = _require("dask", "dask"), _require("distributed", "dask")
    address = engine.address or dask.config.get("scheduler-address", None)
    try:
        if address is None:
            workers = engine.workers or joblib.cpu_count()
            local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
            client = distributed.Client(**local)
        else:
            client = distributed.Client(address)
    except (OSError, ValueError) as error:
        raise _unreachable(engine, error) from error
    with client:  # joblib takes the client that was opened last
        yield "dask", -1


_BACKENDS = {"loky": _loky, "ray": _ray, "dask": _dask}


def _require(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"--engine {extra} needs a package that is not installed ({error}); pip install 'avfast[{extra}]'"
        ) from error


def _unreachable(engine: Engine, error: Exception) -> InputError:
    place = engine.address or "its default address"
    return InputError(f"--engine {engine.name}: cannot reach a cluster at {place}: {error}")
