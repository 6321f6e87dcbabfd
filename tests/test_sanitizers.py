"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, for each instruction set."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
FLAGS = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-psabi"]
WIDE = ["-mavx2", "-mfma", "-mf16c"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_cpu_kernels_under_sanitizers(tmp_path: Path) -> None:
    x86 = platform.machine() in ("x86_64", "AMD64")
    launchers = sorted((CSRC / "cpu").glob("*.cpp"))
    units = [
        (path, ["-DAVFAST_X86=1"] * x86)
        for path in [*launchers, Path(__file__).parent / "sanitizers/cpu_kernels.cpp"]
    ]
    for path in sorted((CSRC / "cpu" / "simd").glob("*.cpp")):
        units.append((path, ["-DAVFAST_ISA=baseline"]))
        if x86:
            units.append((path, ["-DAVFAST_ISA=avx2", *WIDE]))
    objects = [tmp_path / f"{index}.o" for index in range(len(units))]

    def compile_unit(index: int) -> None:
        path, flags = units[index]
        command = ["g++", *FLAGS, *flags, f"-I{CSRC}", "-c", path, "-o", objects[index]]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_unit, range(len(units))))
    program = tmp_path / "cpu_kernels"
    subprocess.run(["g++", *FLAGS, *objects, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "baseline passed" in result.stdout
