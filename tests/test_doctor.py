"""The doctor: a sound installation has no fault, and each ailment is named with its cure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("av")
pytest.importorskip("cv2")

from avfast import doctor


def run_doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "avfast.doctor", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def finding(check: object, part: str) -> doctor.Finding:
    return next(f for f in check() if f.part == part)  # type: ignore[operator]


def test_this_installation_has_no_fault(tmp_path: Path) -> None:
    result = run_doctor("--json", AVFAST_CACHE=str(tmp_path))
    found = {f["part"]: f for f in json.loads(result.stdout)}
    assert result.returncode == 0, result.stdout
    assert found["kernels on cpu"]["text"].endswith("agree with plain torch")
    assert found["video"]["level"] == "ok"
    assert str(tmp_path) in found["cache"]["text"]


def test_a_missing_native_module_is_a_fault_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> dict[str, object]:
        raise ImportError("avfast's native module cannot be loaded")

    monkeypatch.setattr(doctor.avfast, "build_info", absent)
    kernels = finding(doctor.native_module, "kernels")
    assert (kernels.level, "pip install -e ." in kernels.advice) == ("fault", True)


def test_kernels_that_disagree_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from avfast.ops import reference

    monkeypatch.setattr(reference, "mil_aggregate", lambda scores, logits: scores.sum(1) + 1)
    assert finding(doctor.native_module, "kernels on cpu").level == "fault"


def test_a_missing_codec_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.CODECS, "video", ("h264", "no-such-codec"))
    codecs = finding(doctor.media, "video codecs")
    assert (codecs.level, codecs.text) == ("note", "missing decoders: no-such-codec")


def test_too_many_threads_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    assert "OMP_NUM_THREADS=1" in finding(doctor.threads, "threads").advice


def test_rival_opencv_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: name == "opencv-python")
    assert "pip uninstall opencv-python opencv-contrib-python" in finding(doctor.pictures, "OpenCV").advice


def test_a_cache_that_cannot_be_made_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AVFAST_CACHE", str(tmp_path / "file" / "cache"))
    assert finding(doctor.cache_folder, "cache").advice.startswith("set AVFAST_CACHE")


def test_a_check_that_dies_is_a_fault_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("no idea")

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.machine))
    first, second = doctor.examine()
    assert (first.level, first.text, second.level) == ("fault", "RuntimeError: no idea", "ok")


@pytest.mark.parametrize(
    "architectures, capability, expected",
    [
        (["75-virtual", "80-real", "90-real"], 86, True),
        (["75-virtual"], 120, True),
        (["80-real"], 90, False),
        (["86-real"], 80, False),
        (["90"], 120, True),
        (["90a-real"], 90, True),
        (["90-virtual"], 80, False),
    ],
)
def test_cards_that_a_build_runs_on(architectures: list[str], capability: int, expected: bool) -> None:
    assert doctor.runs_on(architectures, capability) is expected
