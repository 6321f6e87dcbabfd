"""--profile and --compile: what is measured, what is left alone, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from avfast import checkpoint, profiling, train, training
from avfast.errors import InputError
from avfast.profiling import VALIDATION, StepProfiler

pytestmark = pytest.mark.usefixtures("one_thread")


def options(data: Path, out: Path, **changes: object) -> train.Options:
    return train.Options(data=data, out=out, epochs=1, batch_size=4, device="cpu", report=False, **changes)  # type: ignore[arg-type]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / "last.pt")["model"]


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of a run with neither."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    train.main(options(data, out))
    return weights(out)


def test_profile_prints_shares_writes_a_trace_and_changes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], plain: dict[str, torch.Tensor]
) -> None:
    train.main(options(data, tmp_path / "profiled", profile=2))
    printed = capsys.readouterr().out
    shares = dict(re.findall(r"^  (\D+?) +[\d.]+ ms +([\d.]+)%$", printed, re.MULTILINE))
    parts = ["reading", "to device", "regions", "forward", "backward", "optimiser", "logs and checkpoints"]
    assert list(shares) == parts
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=0.4)
    assert "2 steps of" in printed and "validation took" in printed
    events = json.loads((tmp_path / "profiled" / "trace.json").read_text())["traceEvents"]
    spans = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert spans.count("forward") == spans.count("backward") == 2
    profiled = weights(tmp_path / "profiled")
    assert all(torch.equal(plain[name], profiled[name]) for name in plain)


def test_a_run_shorter_than_the_profile(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(options(data, tmp_path / "out", profile=100))
    assert "3 steps of" in capsys.readouterr().out  # of six, without the first three
    assert (tmp_path / "out" / "trace.json").is_file()


def test_time_goes_to_the_part_in_which_it_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(profiling, "time", SimpleNamespace(perf_counter=lambda: clock))
    profiler = StepProfiler(2, torch.device("cpu"), tmp_path)
    for step in range(profiling.WARM_UP + 4):
        for name, seconds in (("forward", 3.0), ("backward", 5.0)):
            profiler.part(name)
            clock += seconds
        profiler.step_done()
        clock += 2.0  # the next batch is read
        if step == profiling.WARM_UP + 2:
            profiler.part(VALIDATION)
            clock += 40.0
            profiler.part("logs and checkpoints")
            clock += 7.0  # not of a measured step
    assert profiler.seconds == {"reading": 4.0, "forward": 6.0, "backward": 10.0, VALIDATION: 40.0}
    assert profiler.table()[0] == "2 steps of 10000.00 ms"


def test_compile_needs_a_compiler(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (str(tmp_path / "none"),))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    with pytest.raises(
        InputError, match=r"--compile: torch cannot generate code for cpu here .*leave it out"
    ):
        train.main(options(data, tmp_path / "out", compile=True))


def test_compile_takes_the_whole_model_in_one_graph(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: dict[str, torch.Tensor]
) -> None:
    """Without generating code, which takes a minute: what is traced is run by eager kernels."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(training, "code_generation", lambda _: {"backend": backend, "dynamic": True})
    train.main(options(data, tmp_path / "traced", compile=True))
    assert 2 <= len(graphs) <= 4  # to learn and to validate, and where a size was not told apart at first
    traced = weights(tmp_path / "traced")
    assert plain.keys() == traced.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], traced[name], rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match=r"other options .*compile"):
        train.main(options(data, tmp_path / "traced", resume=True))
