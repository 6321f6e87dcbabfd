"""What a program prints and how it exits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = '''
"""Do a thing to a file.

    python -m program FILE
"""
from dataclasses import dataclass
from pathlib import Path
import tyro
from avfast.cli import run
from avfast.errors import InputError

@dataclass
class Options:
    file: tyro.conf.Positional[Path]
    """The file to do it to."""
    times: int = 1
    """How often."""
    limit: int | None = None
    """How often at most."""
    loud: bool | None = None
    """In capitals, or not."""
    dots: bool = True
    """End with dots."""

def main(options: Options) -> None:
    if options.times > 9:
        raise InputError(f"{options.file}: too often;\\ndo it less")
    if options.times < 0:
        raise KeyError("a bug")
    text = options.file.read_text() * min(options.times, options.limit or options.times)
    print({None: text, True: text.upper(), False: text.lower()}[options.loud] + "..." * options.dots)

if __name__ == "__main__":
    run(main, Options)
'''


@pytest.fixture
def program(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "file").write_text("Done")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "program", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    return call


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--times 2 --no-dots", "DoneDone"),
        ("--times 3 --limit 2 --dots", "DoneDone..."),
        ("--loud --no-dots", "DONE"),
        ("--loud False --no-dots", "done"),
    ],
)
def test_runs(program, options: str, text: str) -> None:
    ended = program("file", *options.split())
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{text}\n", "")


def test_help_is_the_manual(program) -> None:
    ended = program("--help")
    assert ended.returncode == 0
    for part in ("usage: python -m program", "Do a thing to a file.", "The file to do it to.", "How often."):
        assert part in ended.stdout
    for part in ("--limit INT ", "--loud [True|False] ", "--dots, --no-dots "):
        assert part in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "FILE"),
        (("file", "--time", "2"), "--time"),
        (("file", "--times", "many"), "many"),
        (("file", "--loud", "very"), "'very'"),
        (("none",), "none: No such file or directory"),
        (("file", "--times", "10"), "file: too often; do it less"),
    ],
)
def test_bad_usage_and_bad_input_end_in_one_line(program, arguments: tuple[str, ...], message: str) -> None:
    ended = program(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("program: error: ")
    assert ended.stderr.count("\n") == 1
    assert message in ended.stderr


def test_a_bug_keeps_its_traceback(program) -> None:
    ended = program("file", "--times", "-1")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
