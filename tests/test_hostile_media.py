"""Media as it comes from the wild, and media made to hurt: the job goes on, in bounds of time and memory.

The fuzzer runs for AVFAST_FUZZ_SECONDS (5 by default) from AVFAST_FUZZ_SEED (0); a failure names its case.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from media_maker import grey_frames, tone, turned, write_media

from avfast import sandbox
from avfast.data.clips import UNEXPECTED, Outcome, Settings
from avfast.data.dataset import ShardDataset
from avfast.data.label_lists import read_labels
from avfast.data.logmel import VGGishLogMel
from avfast.data.preparation import prepare
from avfast.engines import Engine

SETTINGS = Settings(proposals=3, long_side=64)
MEMORY = 1 << 30
CHILD_MEMORY = 400 << 20  # what the interpreter and its libraries take, and caches of allocators


def sounding(path: Path, **options: Any) -> Path:
    """Three seconds of picture, two of sound."""
    return write_media(path, grey_frames(12), sound=tone(440, 2, 16_000), **options)


def encoder(name: str) -> dict[str, Any]:
    """A video codec with options that every one has."""
    return {"codec": name, "codec_options": {"threads": "1"}}


def two_of_each(path: Path) -> None:
    """The first picture is dark, the second bright; the first track is a tone, the second is silent."""
    with av.open(str(path), "w") as container:
        videos: list[Any] = [container.add_stream("libx264", 4) for _ in range(2)]
        tracks: list[Any] = [container.add_stream("aac", 16_000, layout="mono") for _ in range(2)]
        for stream in videos:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(12):
            for stream, value in zip(videos, (20, 220), strict=True):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8), format="rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
        for stream, level in zip(tracks, (1, 0), strict=True):
            sound = av.AudioFrame.from_ndarray(level * tone(440, 2, 16_000), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 16_000, 0
            container.mux(stream.encode(sound))
        for stream in videos + tracks:
            container.mux(stream.encode(None))


def truncated(path: Path, whole: Path, share: float) -> None:
    data = whole.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def patched(path: Path, whole: Path, mark: bytes, offset: int, value: bytes) -> None:
    """A copy with other bytes at an offset from the first place where ``mark`` stands."""
    data = bytearray(whole.read_bytes())
    at = data.index(mark) + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)


def make_odd_files(folder: Path) -> None:
    """A file for each way in which media surprises its reader; the name says which."""
    mp4, avi = sounding(folder / "plain.mp4"), folder / "plain.avi"
    mkv = sounding(folder / "plain.mkv")
    write_media(avi, grey_frames(12), sound=tone(440, 2, 16_000), sound_codec="pcm_s16le", **encoder("mpeg4"))
    truncated(folder / "cut-before-index.mp4", mp4, 0.5)
    truncated(folder / "cut.mkv", mkv, 0.7)
    truncated(folder / "cut-in-header.avi", avi, 0.05)
    two_of_each(folder / "two-of-each.mkv")
    turned(mp4, folder / "turned.mp4", 90)
    sounding(folder / "ten-bit.mkv", pix_fmt="yuv420p10le")
    for name, channels in (("mono", 1), ("stereo", 2), ("surround", 6)):
        write_media(folder / f"{name}.mp4", grey_frames(8), sound=tone(440, 2, 48_000, channels), rate=48_000)
    write_media(folder / "silence.mp4", grey_frames(8), sound=np.zeros((1, 32_000), np.float32))
    write_media(folder / "no-sound.mp4", grey_frames(8))
    write_media(folder / "no-picture.m4a", sound=tone(440, 2, 16_000))
    write_media(folder / "long-sound.mkv", grey_frames(4), sound=tone(440, 6, 16_000))
    write_media(folder / "short-sound.mkv", grey_frames(24), sound=tone(440, 1, 16_000))
    write_media(folder / "uneven.mkv", grey_frames(5), times=[0, 0.03, 1.9, 2.0, 4.5])
    sounding(folder / "no-duration.mkv", options={"live": "1"})
    dot = [np.full((1, 1, 3), 90, np.uint8)] * 3
    write_media(folder / "one-pixel.mkv", dot, fps=1, pix_fmt="bgr0", **encoder("ffv1"))
    thread = [np.full((1, 500, 3), 90, np.uint8)] * 3
    write_media(folder / "thread.mkv", thread, fps=1, pix_fmt="bgr0", **encoder("ffv1"))
    raw = write_media(folder / "raw.avi", grey_frames(4), pix_fmt="bgr24", **encoder("rawvideo"))
    patched(folder / "huge-picture.avi", raw, b"strf", 12, struct.pack("<ii", 65_000, 65_000))
    raw.unlink()
    sound = folder / "sound.wav"
    soundfile.write(sound, tone(440, 1, 16_000)[0], 16_000)
    patched(folder / "huge-length.wav", sound, b"data", 4, b"\xf0\xff\xff\x7f")
    patched(folder / "rate-of-one.wav", sound, b"fmt ", 12, struct.pack("<I", 1))
    patched(folder / "many-channels.wav", sound, b"fmt ", 10, struct.pack("<H", 60_000))
    flac = folder / "sound.flac"
    soundfile.write(flac, tone(440, 1, 16_000)[0], 16_000)
    patched(folder / "huge-length.flac", flac, b"fLaC", 8 + 14, b"\xff\xff\xff\xff")
    for name in ("with space.mp4", "-dash.mp4", "new\nline.mp4", "кот.mp4", "猫,\"'.mp4", "#10-20.mp4"):
        (folder / name).write_bytes(mp4.read_bytes())
    (folder / "text.mp4").write_text("#EXTM3U\nplain.mp4\n")
    (folder / "zeros.mkv").write_bytes(bytes(100_000))


LACKS = {
    "no-sound.mp4": "no sound",
    "no-picture.m4a": "no picture",
    "uneven.mkv": "no sound",
    "one-pixel.mkv": "no sound",
    "thread.mkv": "no sound",
    "sound.wav": "no picture",
    "sound.flac": "no picture",
}
UNUSABLE = {"cut-before-index.mp4", "cut-in-header.avi", "text.mp4", "zeros.mkv", "rate-of-one.wav"}
EITHER = {"huge-picture.avi", "huge-length.wav", "huge-length.flac", "many-channels.wav"}


def listed(folder: Path, names: list[str]) -> Path:
    """A list with a byte order mark and every name in quotes, as spreadsheets write it."""
    path = folder / "labels.csv"
    rows = ('"{}","x","train"\r\n'.format(name.replace('"', '""')) for name in names)
    path.write_bytes(("\ufeffclip,labels,split\r\n" + "".join(rows)).encode())
    return path


def job(source: Path, names: list[str], folder: Path) -> dict[str, Outcome]:
    limits = sandbox.Limits(seconds=30, memory=MEMORY)
    labels = read_labels(listed(folder, names), source)
    outcomes = prepare(source, labels, folder / "out", SETTINGS, Engine(workers=1), limits)
    return {outcome.clip: outcome for outcome in outcomes}


def child_peak() -> int:
    """Bytes of memory that the child of this thread has held at most."""
    status = Path(f"/proc/{sandbox._mine.child.process.pid}/status")
    rows = status.read_text().splitlines() if status.is_file() else ["VmHWM: 0"]
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmHWM"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A current folder in which nothing may be written."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    yield
    assert list(place.iterdir()) == []


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.usefixtures("elsewhere")
def test_odd_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_odd_files(source)
    before = state(source)
    names = sorted(path.name for path in source.iterdir())
    found = job(source, names, tmp_path)
    assert sorted(found) == names
    assert child_peak() < MEMORY + CHILD_MEMORY
    assert not [outcome for outcome in found.values() if outcome.reason.startswith(UNEXPECTED)]
    for name, outcome in found.items():
        if name in UNUSABLE:
            assert outcome.status == "skipped", name
        elif name not in EITHER:
            assert (outcome.status, outcome.reason) == ("ok", LACKS.get(name, "")), name
    assert "declares a sample rate of 1 Hz" in found["rate-of-one.wav"].reason
    assert state(source) == before
    check_contents(ShardDataset(tmp_path / "out", "train", 32, 3, VGGishLogMel()))


def check_contents(clips: ShardDataset) -> None:
    at = {name: clips[index] for index, name in enumerate(clips.clips)}
    for sample in at.values():
        assert np.isfinite(sample.audio.numpy()).all()
        assert len(sample.frames) == 0 or len(sample.boxes) >= 1
    assert at["uneven.mkv"].frame_times.tolist() == pytest.approx([0, 1.9, 2.0, 4.5], abs=0.01)
    assert at["one-pixel.mkv"].frame_size == (1, 1)
    assert at["turned.mp4"].frame_size == (48, 64)
    assert at["two-of-each.mkv"].frames.float().mean() < 40
    assert at["two-of-each.mkv"].audio.max() > 0
    assert len(at["long-sound.mkv"].audio) > 10 > 2 >= len(at["short-sound.mkv"].audio)
    assert len(at["cut.mkv"].frames) >= 1


def seeds(folder: Path) -> list[Path]:
    """Small whole files of many formats."""
    folder.mkdir()
    picture, sound = grey_frames(6), tone(440, 1, 48_000)
    noise = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), dtype=np.uint8)
    made = [
        ("a.mp4", "libx264", "aac"),
        ("b.mkv", "libx264", "flac"),
        ("c.webm", "libvpx-vp9", "libopus"),
        ("d.webm", "libvpx", "libopus"),
        ("e.avi", "mpeg4", "libmp3lame"),
        ("f.avi", "mjpeg", "pcm_s16le"),
        ("g.mpg", "mpeg2video", "mp2"),
        ("h.flv", "flv1", "libmp3lame"),
        ("i.mkv", "libx265", "ac3"),
        ("j.mov", "png", "pcm_s16le"),
    ]
    for name, *codecs in made:
        pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codecs[0], "yuv420p")
        frames = [*picture, *noise] if name in ("a.mp4", "e.avi") else picture
        rate = 44_100 if name == "h.flv" else 48_000
        track = tone(440, 1, rate) if rate != 48_000 else sound
        options = {"fps": 25, "pix_fmt": pix_fmt, "sound": track, "rate": rate, "sound_codec": codecs[1]}
        write_media(folder / name, frames, **options, **encoder(codecs[0]))
    for name in ("k.wav", "l.flac", "m.ogg"):
        soundfile.write(folder / name, sound[0], 48_000)
    return sorted(folder.iterdir())


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 3, 10, 100])):
        data[rng.randrange(len(data))] = rng.randrange(256)


def overwrite_number(data: bytearray, rng: random.Random) -> None:
    """Sizes, counts, rates and dimensions are numbers of 2, 4 or 8 bytes; most stand near the start."""
    for _ in range(rng.randint(1, 4)):
        width = rng.choice([2, 4, 8])
        value = rng.choice([0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1) - 1, rng.getrandbits(8 * width)])
        at = rng.randrange(max(1, min(len(data), rng.choice([100, 1000, 10**9])) - width))
        data[at : at + width] = value.to_bytes(width, rng.choice(["big", "little"]))


def cut(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : rng.choice([at + 1, at + 16, at + rng.randrange(2000), len(data)])]


def repeat(data: bytearray, rng: random.Random) -> None:
    at, length = rng.randrange(len(data)), rng.randrange(1, 2000)
    data[at:at] = data[at : at + length] * rng.choice([1, 2, 50])


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [flip, overwrite_number, cut, repeat]
ROUND = 20


@pytest.mark.usefixtures("elsewhere")
def test_mutated_files(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seconds = float(os.environ.get("AVFAST_FUZZ_SECONDS", 5))
    seed = int(os.environ.get("AVFAST_FUZZ_SEED", 0))
    pool = seeds(tmp_path / "seeds")
    if seconds > 30:  # longer files, which take longer
        with contextlib.suppress(pytest.skip.Exception):  # where there are some
            odd = request.getfixturevalue("odd_clips")
            pool += [path for path in sorted(odd.iterdir()) if path.stat().st_size]
    end, case = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        place = tmp_path / f"round{case:06d}"
        source = place / "source"
        source.mkdir(parents=True)
        (source / "whole.mp4").write_bytes(pool[0].read_bytes())
        for number in range(case, case + ROUND):
            rng = random.Random(f"{seed} {number}")
            chosen = rng.choice(pool)
            data = bytearray(chosen.read_bytes())
            for mutation in rng.choices(MUTATIONS, k=rng.randint(1, 3)):
                mutation(data, rng)
                data = data or bytearray(b"\0")
            (source / f"{number:06d}{chosen.suffix}").write_bytes(data)
        before = state(source)
        names = sorted(before_path.name for before_path in before)
        found = job(source, names, place)
        where = f"AVFAST_FUZZ_SEED={seed}, files of {place}"
        assert sorted(found) == names, where
        assert found["whole.mp4"] == Outcome("whole.mp4", "ok"), where
        for name, outcome in found.items():
            assert not outcome.reason.startswith(UNEXPECTED), f"{where}: {name}: {outcome.reason}"
            assert "took longer" not in outcome.reason, f"{where}: {name}: {outcome.reason}"
        assert state(source) == before, where
        assert child_peak() < MEMORY + CHILD_MEMORY, where
        shutil.rmtree(place)
        case += ROUND
    print(f"{case} mutated files from seed {seed}")
