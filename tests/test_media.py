"""Decoding of frames and sound."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media_maker import grey_frames, tone, turned, write_media

from avfast.data import media
from avfast.data.media import SAMPLE_RATE, read_frames, read_sound
from avfast.errors import InputError


def brightness(path: Path, **options: float) -> list[int]:
    """Numbers of the grey frames that were sampled."""
    return [round((frame.image.mean() - 10) / 10) for frame in read_frames(path, **options)]


def peak_frequency(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)[spectrum.argmax()])


def test_frames_at_a_fixed_rate(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", grey_frames(14), fps=4)
    assert [frame.time for frame in read_frames(path)] == [0, 1, 2, 3]
    assert brightness(path) == [0, 4, 8, 12]
    assert brightness(path, fps=2) == [0, 2, 4, 6, 8, 10, 12]
    assert brightness(path, fps=100) == list(range(14))


def test_variable_frame_rate(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", grey_frames(6), times=[0, 0.4, 2.7, 2.9, 3.1, 3.9])
    assert [frame.time for frame in read_frames(path)] == pytest.approx([0, 2.7, 3.1])
    assert brightness(path) == [0, 2, 4]


def moving_frames(count: int) -> list[np.ndarray]:
    """A textured square over a textured ground, so that frames are predicted from each other."""
    ground = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    frames = [ground.copy() for _ in range(count)]
    for index, frame in enumerate(frames):
        frame[10:30, index : index + 20] = ground[20:40, :20]
    return frames


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"bf": "3", "b-pyramid": "normal", "g": "20"}),
        (
            "a.mkv",
            "libx264",
            {"bf": "8", "b_strategy": "0", "x264-params": "open-gop=1:keyint=7:min-keyint=7"},
        ),
        ("a.avi", "mpeg4", {"bf": "2"}),
        ("a.mpg", "mpeg2video", {"bf": "2"}),
        ("a.webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "10", "cpu-used": "8"}),
        ("a.mov", "mjpeg", {"q": "3"}),
    ],
)
@pytest.mark.parametrize("fps", [1, 7.5])
def test_sampled_frames_are_those_of_the_whole_video(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], fps: float
) -> None:
    """What is not decoded changes nothing in what is."""
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_media(
        tmp_path / name, moving_frames(40), fps=25, pix_fmt=pix_fmt, codec=codec, codec_options=options
    )
    every = list(read_frames(path, fps=1000))
    assert len(every) == 40
    periods = [int((frame.time + 1e-3) * fps) for frame in every]
    expected = [every[periods.index(period)] for period in sorted(set(periods))]
    sampled = list(read_frames(path, fps))
    assert [frame.time for frame in sampled] == [frame.time for frame in expected]
    for frame, other in zip(sampled, expected, strict=True):
        np.testing.assert_array_equal(frame.image, other.image)


def test_only_sampled_frames_of_an_intra_codec_are_decoded(tmp_path: Path) -> None:
    path = write_media(
        tmp_path / "a.mov",
        moving_frames(40),
        fps=10,
        pix_fmt="yuvj420p",
        codec="mjpeg",
        codec_options={"q": "3"},
    )
    with av.open(str(path)) as container:
        frames = list(media._decode_sparsely(container, container.streams.video[0], fps=1, origin=0))
    assert [frame.time for frame in frames] == [0, 1, 2, 3]


def test_large_frames_are_scaled_down(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", grey_frames(1, 320, 180))
    (frame,) = read_frames(path, long_side=160)
    assert frame.image.shape == (90, 160, 3)
    assert frame.source_size == (320, 180)
    (frame,) = read_frames(path, long_side=640)
    assert frame.image.shape == (180, 320, 3)


@pytest.mark.parametrize(
    ("degrees", "corner", "size"),
    [
        (0, (slice(0, 24), slice(0, 32)), (64, 48)),
        (90, (slice(0, 32), slice(24, 48)), (48, 64)),
        (180, (slice(24, 48), slice(32, 64)), (64, 48)),
        (270, (slice(32, 64), slice(0, 24)), (48, 64)),
    ],
)
def test_rotation_metadata(
    tmp_path: Path, degrees: int, corner: tuple[slice, slice], size: tuple[int, int]
) -> None:
    """A bright top left corner ends up where a clockwise turn puts it."""
    image = np.full((48, 64, 3), 30, np.uint8)
    image[:24, :32] = 220
    path = turned(write_media(tmp_path / "a.mp4", [image]), tmp_path / "b.mp4", degrees)
    (frame,) = read_frames(path)
    assert frame.source_size == size
    assert frame.image.shape == (size[1], size[0], 3)
    assert frame.image[corner].mean() > 200
    assert frame.image.mean() < 90


def test_ten_bit_video(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", grey_frames(5), fps=1, pix_fmt="yuv420p10le")
    assert brightness(path) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (48_000, 6)])
def test_sound_track(tmp_path: Path, rate: int, channels: int) -> None:
    path = write_media(tmp_path / "a.mp4", grey_frames(8), sound=tone(440, 2, rate, channels), rate=rate)
    waveform = read_sound(path)
    assert waveform.dtype == np.float32
    assert len(waveform) / SAMPLE_RATE == pytest.approx(2, abs=0.15)  # AAC fills its last frame
    assert peak_frequency(waveform[4000:28000]) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_sound_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(1000, 1.5, 44_100, 2).T, 44_100)
    waveform = read_sound(path)
    assert len(waveform) == 24_000
    assert peak_frequency(waveform) == pytest.approx(1000, abs=1)
    assert np.abs(waveform[2000:-2000]).max() == pytest.approx(0.5, abs=0.01)


def test_sound_that_starts_late_is_preceded_by_silence(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", grey_frames(12), sound=tone(440, 1, 16_000), sound_start=1.5)
    waveform = read_sound(path)
    assert np.abs(waveform[: round(1.4 * SAMPLE_RATE)]).max() == 0
    assert np.abs(waveform[round(1.6 * SAMPLE_RATE) : round(2.4 * SAMPLE_RATE)]).max() > 0.4


def test_one_modality_alone(tmp_path: Path) -> None:
    silent = write_media(tmp_path / "silent.mp4", grey_frames(4))
    blind = write_media(tmp_path / "blind.m4a", sound=tone(440, 1, 16_000))
    assert len(read_sound(silent)) == 0
    assert list(read_frames(blind)) == []
    assert len(read_sound(blind)) >= 16_000


def test_values_that_are_not_finite_are_silenced(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.array([0.5, np.nan, np.inf, -0.5], np.float32), SAMPLE_RATE, subtype="FLOAT")
    assert read_sound(path).tolist() == [0.5, 0, 0, -0.5]


@pytest.mark.parametrize("name", ["-dash-.mp4", "http:colon.mp4", "with space\nand line.mp4", "видео.mp4"])
def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plain = write_media(tmp_path / "a.mp4", grey_frames(5), sound=tone(440, 1, 16_000))
    plain.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(list(read_frames(Path(name)))) == 2
    assert len(read_sound(Path(name))) >= 16_000


def test_truncated_file_gives_what_is_left(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 48, 64, 3), dtype=np.uint8)
    whole = write_media(tmp_path / "a.mkv", list(noise), sound=tone(440, 8, 16_000), fps=4)
    data = whole.read_bytes()
    part = tmp_path / "b.mkv"
    part.write_bytes(data[: len(data) // 2])
    assert 1 <= len(list(read_frames(part))) < len(list(read_frames(whole)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"garbage" * 99, "cannot be read"), (None, "no such file")],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.wav"])
def test_unreadable_files(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as raised:
        read_sound(path)
    assert str(path) in str(raised.value)


def test_playlist_is_not_followed(tmp_path: Path) -> None:
    """A text file that names another file must not pull it in, whatever its own name."""
    write_media(tmp_path / "secret.ts", grey_frames(8))
    lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:9", "#EXTINF:2,", "secret.ts", "#EXT-X-ENDLIST", "")
    for name in ("a.m3u8", "a.mp4"):
        (tmp_path / name).write_text("\n".join(lines))
        with pytest.raises(InputError, match="cannot be read"):
            list(read_frames(tmp_path / name))


@pytest.fixture(scope="module")
def small_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("media") / "a.mp4", grey_frames(8), sound=tone(440, 2, 16_000))


def test_unknown_codec_is_no_picture(tmp_path: Path, small_video: Path) -> None:
    path = tmp_path / "a.mp4"
    data = small_video.read_bytes()
    codec = max(data.rfind(name) for name in (b"avc1", b"mp4v"))
    path.write_bytes(data[:codec] + b"\0\0\0\0" + data[codec + 4 :])
    assert list(read_frames(path)) == []
    assert len(read_sound(path)) > 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), max_size=6
    )
)
def test_damaged_bytes(tmp_path: Path, small_video: Path, changes: list[tuple[float, bytes]]) -> None:
    data = bytearray(small_video.read_bytes())
    for place, patch in changes:
        at = int(place * len(data))
        data[at : at + len(patch)] = patch[: len(data) - at]
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    try:
        frames = list(read_frames(path))
        waveform = read_sound(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert all(frame.image.ndim == 3 and np.isfinite(frame.time) for frame in frames)
        assert np.isfinite(waveform).all()


def test_odd_clips(odd_clips: Path) -> None:
    read = {}
    for path in odd_clips.iterdir():
        try:
            read[path.name] = (len(list(read_frames(path))), len(read_sound(path)) > 0)
        except InputError as error:
            read[path.name] = str(error)
    assert read.pop("empty.webm") == f"{odd_clips / 'empty.webm'}: the file is empty"
    assert read.pop("no_audio.mp4")[1] is False
    assert all(frames > 0 for frames, _ in read.values())
    assert read["no_duration.webm"][1] is True


def test_real_clip(real_clips: Path) -> None:
    path = real_clips / "videos" / "test_0000.mp4"
    frames = list(read_frames(path))
    assert [frame.time for frame in frames] == list(range(10))
    assert {frame.image.shape for frame in frames} == {(240, 320, 3)}
    assert len(read_sound(path)) / SAMPLE_RATE == pytest.approx(10, abs=0.15)
