"""The same work on a Ray cluster and on a Dask cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from preparing import contents, copies_csv, job

from avfast.engines import Engine, unordered
from avfast.errors import InputError


def test_ray(
    source: Path, tmp_path: Path, uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster that is running already, which stays so."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    cluster = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 << 20}
    ray.init(log_to_driver=False, logging_level="ERROR", **cluster)
    try:
        job(source, copies_csv(tmp_path), tmp_path / "out", engine=Engine("ray"))
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert contents(tmp_path / "out") == uninterrupted


def test_dask(source: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    """On a cluster that is running already, by its address."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(1, threads_per_worker=2, dashboard_address=None) as cluster:
        engine = Engine("dask", address=cluster.scheduler_address)
        job(source, copies_csv(tmp_path), tmp_path / "out", engine=engine)
    assert contents(tmp_path / "out") == uninterrupted


@pytest.mark.parametrize("name", ["ray", "dask"])
def test_missing_package(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError, match=rf"--engine {name} needs a package .* pip install 'avfast\[{name}\]'"
    ):
        list(unordered(abs, [(1,)], Engine(name)))  # type: ignore[arg-type]


def test_no_cluster_at_the_address() -> None:
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    patience = dask.config.set({"distributed.comm.timeouts.connect": "500ms"})
    with (
        patience,
        pytest.raises(InputError, match=r"--engine dask: cannot reach a cluster at tcp://127\.0\.0\.1:9"),
    ):
        list(unordered(abs, [(1,)], Engine("dask", address="tcp://127.0.0.1:9")))


def test_only_clusters_have_an_address() -> None:
    with pytest.raises(InputError, match="--engine-address: only"):
        Engine("loky", address="here:1")
