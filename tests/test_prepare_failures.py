"""What may go wrong around the preparation job: kills, full disks, bad decoders, files that come and go."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from preparing import COPIES, SETTINGS, contents, copies_csv, job, labels_csv, program

from avfast import sandbox
from avfast.data.clips import Outcome
from avfast.data.preparation import read_manifest
from avfast.errors import InputError


def test_kill_and_run_again(source: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    """Killed when some clips are staged, and again when packing has begun."""
    labels, out = copies_csv(tmp_path), tmp_path / "out"
    enough = random.randint(1, COPIES - 5)
    moments: list[Callable[[], bool]] = [
        lambda: len(list((out / ".staging").glob("*.tar"))) >= enough,
        lambda: any(path.suffix == ".tar" or path.name.startswith(".tmp-") for path in out.iterdir()),
    ]
    for moment in moments:
        with program(source, labels, out) as process:
            deadline = time.monotonic() + 300
            while not (out.is_dir() and moment()) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.0005)
            os.killpg(process.pid, signal.SIGKILL)
        if moment is moments[0]:
            assert enough <= len(list((out / ".staging").glob("*.tar"))) < COPIES
            assert not (out / "index.json").exists()
    with program(source, labels, out) as again:
        assert again.wait(timeout=300) == 0
    assert contents(out) == uninterrupted


@pytest.mark.parametrize("share", [0.5, 1.5])
def test_full_disk(
    source: Path,
    tmp_path: Path,
    small_disk: Callable[[int], Path],
    uninterrupted: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:
    """The disk is full while clips are staged, or while they are packed: the rest fits when it has grown."""
    shards = sum(len(data) for name, data in uninterrupted.items() if name.endswith(".tar"))
    out = small_disk(int(share * shards)) / "out"
    labels = copies_csv(tmp_path)
    with pytest.raises(InputError, match="out: the disk is full; free some space and run the same command"):
        job(source, labels, out)
    assert not (out / "index.json").exists()
    assert not list(out.rglob(".tmp-*"))
    staged = len(list(out.glob(".staging/*.tar")))
    assert (staged == COPIES) == (share > 1)
    small_disk(8 * shards)
    real, calls = sandbox.run, []
    monkeypatch.setattr(sandbox, "run", lambda *call: calls.append(call) or real(*call))
    job(source, labels, out)
    assert len(calls) <= COPIES - staged + 1  # a clip may be staged and not marked as such
    assert contents(out) == uninterrupted


BAD_DECODERS = """
import ctypes
import av
def bad(path, *rest, _open=av.open, **options):
    if "crash" in path:
        ctypes.string_at(0)
    if "hang" in path:
        ctypes.PyDLL(None).sleep(1000)  # with Python's lock held
    if "greedy" in path:
        bytearray(1 << 30)
    if "bug" in path:
        raise KeyError("nobody thought of it")
    return _open(path, *rest, **options)
av.open = bad
"""


def test_bad_decoders_cost_one_clip_each(source: Path, tmp_path: Path) -> None:
    own, site = tmp_path / "own", tmp_path / "site"
    own.mkdir()
    site.mkdir()
    names = ["bug.mp4", "crash.mp4", "good0.mp4", "good1.mp4", "greedy.mp4", "hang.mp4"]
    for name in names:
        shutil.copy(source / "whole.mp4", own / name)
    (site / "sitecustomize.py").write_text(textwrap.dedent(BAD_DECODERS))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}
    labels = labels_csv(tmp_path, *(f"{name},cat,train," for name in names))
    limits = ["--clip-timeout", 6, "--clip-memory", 0.5]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
    with program(own, labels, tmp_path / "out", *limits, **pipes) as process:
        printed, complaint = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "2 clips prepared, 4 skipped (0 not there, 4 not usable)" in printed
    assert "ERROR: 1 of the clips failed unexpectedly, please report this: 'bug.mp4'" in complaint
    assert "Traceback" not in complaint
    assert read_manifest(tmp_path / "out" / "manifest.csv") == [
        Outcome("bug.mp4", "skipped", "unexpected error: KeyError: 'nobody thought of it'"),
        Outcome("crash.mp4", "skipped", "crashed the decoder (SIGSEGV)"),
        Outcome("good0.mp4", "ok"),
        Outcome("good1.mp4", "ok"),
        Outcome("greedy.mp4", "skipped", "needs more memory than a clip may take; see --clip-memory"),
        Outcome("hang.mp4", "skipped", "took longer than 6 s"),
    ]


def test_files_that_vanish_or_are_none(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    (own / "folder.mp4").mkdir(parents=True)
    for name in ("gone.mp4", "whole.mp4"):
        shutil.copy(source / "whole.mp4", own / name)
    os.mkfifo(own / "pipe.mp4")
    (own / "loop.mp4").symlink_to(own / "loop.mp4")
    (own / "inside.mp4").symlink_to(own / "whole.mp4")
    long = "x" * 300 + ".mp4"
    rows = ["folder.mp4", "gone.mp4", "pipe.mp4", "loop.mp4", "inside.mp4", "whole.mp4", long, "whole.mp4/a"]
    labels = labels_csv(tmp_path, *(f"{name},cat,train," for name in rows))
    real = sandbox.run

    def run(call: bytes, limits: sandbox.Limits) -> sandbox.Result:
        """The file is there when the work is planned, and not when it is done."""
        if pickle.loads(call)[1][0].clip.clip == "gone.mp4":
            (own / "gone.mp4").unlink()
        return real(call, limits)

    monkeypatch.setattr(sandbox, "run", run)
    found = {outcome.clip: outcome for outcome in job(own, labels, tmp_path / "out")}
    assert found["gone.mp4"] == Outcome("gone.mp4", "skipped", "no such file")
    assert {name for name, outcome in found.items() if outcome.status == "ok"} == {"inside.mp4", "whole.mp4"}
    assert "not a regular file" in found["folder.mp4"].reason
    assert "not a regular file" in found["pipe.mp4"].reason
    assert "no such file" in found["whole.mp4/a"].reason
    assert "cannot be reached" in found[long].reason
    assert found["loop.mp4"].status == "skipped"


def test_unreadable_file(source: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    own = tmp_path / "own"
    own.mkdir()
    for name in ("mine.mp4", "secret.mp4"):
        shutil.copy(source / "whole.mp4", own / name)
    (own / "secret.mp4").chmod(0)
    labels = labels_csv(tmp_path, "mine.mp4,cat,train,", "secret.mp4,cat,train,")
    mine, secret = job(own, labels, tmp_path / "out", SETTINGS)
    assert mine.status == "ok"
    assert "Permission denied" in secret.reason
