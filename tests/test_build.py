"""The build: with and without a CUDA compiler, for which cards, and what the module depends on."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

needs_cmake = pytest.mark.skipif(
    None in (shutil.which("cmake"), shutil.which("ninja"), importlib.util.find_spec("pybind11")),
    reason="needs cmake, ninja and pybind11",
)
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


def configure(folder: Path, *definitions: str, nvcc: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs CMake's configure step alone. Without `nvcc`, CMake is told to use one that does not exist."""
    import pybind11

    environment = {key: value for key, value in os.environ.items() if key not in ("CUDAARCHS", "CUDACXX")}
    if not nvcc:
        environment["CUDACXX"] = str(folder / "no" / "nvcc")
    command = ["cmake", f"-S{ROOT}", f"-B{folder / 'build'}", "-GNinja", "-DCMAKE_BUILD_TYPE=Release"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    command += [
        f"-DAVFAST_MODULE_FILE={folder / '_C.so'}",
        *(f"-D{definition}" for definition in definitions),
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@needs_cmake
def test_cuda_on_without_nvcc_is_an_error(tmp_path: Path) -> None:
    result = configure(tmp_path, "AVFAST_CUDA=ON", nvcc=False)
    assert result.returncode != 0
    assert "AVFAST_CUDA=ON, but no CUDA compiler was found: put nvcc on PATH" in " ".join(
        result.stderr.split()
    )


@needs_cmake
@pytest.mark.parametrize("mode", ["AUTO", "OFF"])
def test_without_nvcc_builds_the_cpu_half(tmp_path: Path, mode: str) -> None:
    result = configure(tmp_path, f"AVFAST_CUDA={mode}", nvcc=False)
    assert result.returncode == 0, result.stderr
    notices = [
        line for line in result.stdout.splitlines() if "nvcc not found, building the CPU kernels only" in line
    ]
    assert len(notices) == (1 if mode == "AUTO" else 0)
    rules = (tmp_path / "build" / "build.ninja").read_text()
    assert "csrc/cpu/roi_pool.cpp" in rules
    assert "csrc/cuda/" not in rules


@needs_cmake
def test_other_cuda_modes_are_an_error(tmp_path: Path) -> None:
    result = configure(tmp_path, "AVFAST_CUDA=yes", nvcc=False)
    assert result.returncode != 0
    assert "AVFAST_CUDA must be AUTO, ON or OFF, got 'yes'" in result.stderr


@needs_cmake
@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("nvidia_smi", "architectures"),
    [
        ("echo 9.0; echo 8.6; echo 9.0", {"90", "86"}),
        ("echo 'No devices were found'; exit 6", {"75", "80", "90"}),
    ],
    ids=["cards", "no card"],
)
def test_default_cuda_architectures(tmp_path: Path, nvidia_smi: str, architectures: set[str]) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{nvidia_smi}\n")
    program.chmod(0o755)
    result = configure(tmp_path, "AVFAST_CUDA=ON", f"AVFAST_NVIDIA_SMI={program}")
    assert result.returncode == 0, result.stderr
    rules = (tmp_path / "build" / "build.ninja").read_text()
    assert {arch for arch in ("75", "80", "86", "90") if f"arch=compute_{arch}" in rules} == architectures


@pytest.fixture(scope="module")
def module() -> Path:
    from avfast.native import native

    return Path(native().__file__)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_module_needs_no_driver_and_no_torch(module: Path) -> None:
    """The CUDA runtime is linked statically, so the module loads where there is no driver."""
    dynamic = subprocess.run(["readelf", "-d", module], capture_output=True, text=True, check=True).stdout
    needed = [line for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert needed
    assert not [
        line for line in needed if any(name in line for name in ("cuda", "torch", "c10", "libpython"))
    ]


def test_module_loads_without_torch(module: Path) -> None:
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('_C', {str(module)!r})\n"
        "native = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(native)\n"
        "assert 'torch' not in sys.modules\n"
        "print(sorted(native.build_info()))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "cuda_archs" in result.stdout
