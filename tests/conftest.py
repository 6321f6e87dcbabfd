"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared out already; before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

ROOT = Path(__file__).resolve().parent.parent


def _material(name: str) -> Path:
    """A folder of real test material that lies outside the repository."""
    clips = Path(os.environ.get("AVFAST_REAL_CLIPS", ROOT.parent / "shared" / "real_clips"))
    return clips.resolve().parent / name if name != "real_clips" else clips.resolve()


def _material_or_skip(name: str) -> Path:
    folder = _material(name)
    if not folder.is_dir():
        pytest.skip(f"no {name} at {folder}; set AVFAST_REAL_CLIPS to the folder of real clips")
    return folder


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """Labelled real videos: labels.csv, annotations.csv, videos/."""
    return _material_or_skip("real_clips")


@pytest.fixture(scope="session")
def odd_clips() -> Path:
    """Videos that break naive loaders."""
    return _material_or_skip("odd_clips")


@pytest.fixture(scope="session")
def dcase_lists() -> Path:
    """The label lists of DCASE 2017 task 4."""
    return _material_or_skip("dcase2017_task4")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many bytes; called again, changes its size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        option = f"{'remount,' if place.is_mount() else ''}size={size}"
        command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a tmpfs is not permitted here")
        return place

    if os.name != "posix" or not shutil.which("mount"):
        pytest.skip("no mount command")
    yield mount
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of a few seconds' training."""
    import tiny_shards  # needs the decoders, which the kernels' tests do without

    return tiny_shards.make(tmp_path_factory.mktemp("tiny") / "shards")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small videos, good and bad; see preparing.make_source."""
    import preparing

    return preparing.make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def uninterrupted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one worker makes of the copies in ``source``."""
    import preparing

    folder = tmp_path_factory.mktemp("uninterrupted")
    preparing.job(source, preparing.copies_csv(folder), folder / "out")
    return preparing.contents(folder / "out")


def _cuda_works() -> bool:
    if not torch.cuda.is_available():
        return False
    import avfast

    return avfast.build_info()["cuda"] is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` run where there is a device and the CUDA half is built."""
    # By marker, not by keyword: keywords hold the names of folders too, and a checkout may be called `cuda`.
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked and not _cuda_works():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device and a build with the CUDA half"))
