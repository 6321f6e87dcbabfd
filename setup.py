"""Builds the native module avfast._C with CMake and ninja; needs no torch at build time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Hands the one extension to CMake, in a build folder that outlives pip's temporary one."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # One folder per interpreter, so that a second `pip install -e .` recompiles only what changed.
        build_dir = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}"
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build_dir}",
            "-GNinja",
            "-DCMAKE_BUILD_TYPE=Release",
            # Given anew each time: under build isolation the paths of the last run are gone.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DAVFAST_VERSION={self.distribution.get_version()}",
            f"-DAVFAST_CUDA={os.environ.get('AVFAST_CUDA', 'AUTO')}",
            f"-DAVFAST_MODULE_FILE={target}",
        ]
        if archs := os.environ.get("CMAKE_CUDA_ARCHITECTURES"):
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={archs}")
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir), *self._jobs()], check=True)

    def _jobs(self) -> list[str]:
        return [] if "CMAKE_BUILD_PARALLEL_LEVEL" in os.environ else ["--parallel", str(os.cpu_count() or 1)]


setup(ext_modules=[Extension("avfast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
