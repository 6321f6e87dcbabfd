"""Lists of labels and annotations, well formed and not."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avfast.data.label_lists import DCASE2017_CLASSES, read_labels
from avfast.data.labels import (
    SPLITS,
    Annotation,
    Annotations,
    LabelledClip,
    Labels,
    annotations_csv,
    hash_split,
    read_annotations,
)
from avfast.errors import InputError


def labels(tmp_path: Path, text: str | bytes) -> Labels:
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(path, tmp_path)


def test_every_column(tmp_path: Path) -> None:
    found = labels(
        tmp_path,
        "clip,labels,split,audio\n"
        'b.mp4,"dog; cat;dog",val,\n'
        "\n"
        '"a, b.mp4",cat,test, sound.wav\n'
        "c.mp4,,train,\n",
    )
    assert found.classes == ("cat", "dog")
    assert found.clips == (
        LabelledClip("a, b.mp4", ("cat",), "test", "sound.wav"),
        LabelledClip("b.mp4", ("cat", "dog"), "val", None),
        LabelledClip("c.mp4", (), "train", None),
    )
    assert found.annotations is None


def test_split_by_name(tmp_path: Path) -> None:
    found = labels(tmp_path, "clip,labels\n" + "".join(f"{index}.mp4,x\n" for index in range(2000)))
    share = Counter(clip.split for clip in found.clips)
    assert share["train"] / 2000 == pytest.approx(0.8, abs=0.03)
    assert share["val"] / 2000 == pytest.approx(0.1, abs=0.03)
    assert share["test"] / 2000 == pytest.approx(0.1, abs=0.03)
    # The split is part of what users compare results on: it must never change.
    frozen = {"a.mp4": "test", "b.mp4": "val", "clip/0.mp4": "train", "9.mp4": "train"}
    assert {name: hash_split(name) for name in frozen} == frozen


def test_empty_split_falls_back_to_the_hash(tmp_path: Path) -> None:
    (clip,) = labels(tmp_path, "clip,labels,split\na.mp4,x,\n").clips
    assert clip.split == hash_split("a.mp4")


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    (clip,) = labels(tmp_path, b"\xef\xbb\xbfclip,labels\r\nd\xc3\xa9.mp4,x\r\n").clips
    assert clip.clip == "dé.mp4"


def test_name_with_a_newline(tmp_path: Path) -> None:
    (clip,) = labels(tmp_path, 'clip,labels\n"a\nb.mp4",x\n').clips
    assert clip.clip == "a\nb.mp4"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "header lacks clip, labels"),
        ("clip\na.mp4\n", "header lacks labels"),
        ("a.mp4,x\n", "header lacks clip, labels"),
        ("clip,labels,color\n", "unknown or repeated columns"),
        ("clip,labels,clip\n", "unknown or repeated columns"),
        ("clip,labels\na.mp4,x,y\n", "line 2: expected 2 columns"),
        ("clip,labels\na.mp4\n", "line 2: expected 2 columns"),
        ("clip,labels\na.mp4,x\na.mp4,y\n", "line 3: 'a.mp4' is listed twice"),
        ("clip,labels,split\na.mp4,x,dev\n", "line 2: unknown split 'dev'; expected one of train, val, test"),
        ("clip,labels\n ,x\n", "line 2: the column 'clip' is empty"),
        ("clip,labels\na.mp4, ;\n", "no clip has a label"),
        (b"clip,labels\n\xff\xfe.mp4,x\n", "not UTF-8"),
        ('clip,labels\n"a.mp4,x\n', "not CSV"),
    ],
)
def test_complaints_name_the_file_and_line(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as raised:
        labels(tmp_path, text)
    assert str(tmp_path / "labels.csv") in str(raised.value)


@given(
    content=st.binary() | st.text().map(str.encode) | st.text('a,;\n"\r \ufeff').map("clip,labels\n{}".format)
)
def test_any_content_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    try:
        found = labels(folder, content)
    except InputError as error:
        assert str(folder / "labels.csv") in str(error)
    else:
        assert all(clip.clip and clip.split in SPLITS for clip in found.clips)


def test_missing_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_labels(tmp_path / "none.csv", tmp_path)


VISUAL = Annotation("a.mp4", "visual", "cat", 1.0, 1.0, (0.0, 1.0, 20.5, 30.0))
UNBOXED = Annotation("a.mp4", "visual", "cat", 2.0, 2.0, None)
AUDIO = Annotation("b.mp4", "audio", "dog", 0.5, 2.5, None)


def test_annotations_beside_the_labels(tmp_path: Path) -> None:
    truth = Annotations((VISUAL, UNBOXED, AUDIO))
    (tmp_path / "annotations.csv").write_text(annotations_csv(truth))
    found = labels(tmp_path, "clip,labels\na.mp4,cat\nb.mp4,dog\n").annotations
    assert found == truth
    assert found.visual == (VISUAL,)
    assert found.audio == (AUDIO,)
    assert found.of(["b.mp4"]).rows == (AUDIO,)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("a,smell,cat,0,1,,,,", "unknown modality 'smell'"),
        ("a,audio,cat,2,1,,,,", "the end 1 lies before the start 2"),
        ("a,audio,cat,x,1,,,,", "start is 'x'; expected a number"),
        ("a,audio,cat,0,nan,,,,", "end is 'nan'; expected a number"),
        ("a,visual,cat,0,0,5,5,,9", "x2 is ''; expected a number"),
        ("a,visual,cat,0,0,5,5,5,9", "is empty"),
    ],
)
def test_annotation_complaints(tmp_path: Path, row: str, complaint: str) -> None:
    path = tmp_path / "annotations.csv"
    path.write_text(f"clip,modality,class,start,end,x1,y1,x2,y2\n{row}\n")
    with pytest.raises(InputError, match=f"line 2: .*{complaint}"):
        read_annotations(path)


names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1).map(str.strip)


@given(clip=names.filter(bool), label=names.filter(bool), start=st.floats(0, 1e6), length=st.floats(0, 1e6))
def test_annotations_survive_writing(
    tmp_path_factory: pytest.TempPathFactory, clip: str, label: str, start: float, length: float
) -> None:
    truth = Annotations((Annotation(clip, "audio", label, start, start + length, None),))
    path = tmp_path_factory.mktemp("annotations") / "annotations.csv"
    path.write_bytes(annotations_csv(truth).encode())
    assert read_annotations(path) == truth


def dcase_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "groundtruth_weak_label_training_set.csv").write_text(
        "abc_0.000_10.000.wav\t0.000\t10.000\tTrain\n"
        "abc_0.000_10.000.wav\t0.000\t10.000\tTrain horn\r\n"
        "-x_30.000_40.000.wav\t30.000\t40.000\tAir horn, truck horn\n"
    )
    (folder / "groundtruth_weak_label_testing_set.csv").write_text("t_0_10.wav\t0\t10\tBus\n")
    (folder / "groundtruth_strong_label_testing_set.csv").write_text(
        "t_0_10.wav\t1.5\t2.25\tBus\nt_0_10.wav\t0\t0\tBus\nempty.wav\n"
    )
    return folder


def test_dcase2017(tmp_path: Path) -> None:
    source = tmp_path / "media"
    (source / "deep").mkdir(parents=True)
    for name in ("Yabc_0.000_10.000.wav", "deep/Yabc_0.000_10.000.mp4", "t_0_10.flac"):
        (source / name).touch()
    found = read_labels(dcase_folder(tmp_path), source, "dcase2017")
    assert found.classes == DCASE2017_CLASSES
    assert found.clips == (
        LabelledClip("-x_30.000_40.000.wav", ("Air horn, truck horn",), "train"),  # not on disk
        LabelledClip("deep/Yabc_0.000_10.000.mp4", ("Train", "Train horn"), "train"),
        LabelledClip("t_0_10.flac", ("Bus",), "val"),
    )
    assert found.annotations == Annotations((Annotation("t_0_10.flac", "audio", "Bus", 1.5, 2.25, None),))


def test_dcase2017_complaints(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no groundtruth_weak_label"):
        read_labels(tmp_path, tmp_path, "dcase2017")
    folder = dcase_folder(tmp_path)
    path = folder / "groundtruth_weak_label_evaluation_set.csv"
    path.write_text("t_0_10.wav\t0\t10\tBus\n")
    with pytest.raises(InputError, match=r"line 1: 't_0_10\.wav' is also in the list for val"):
        read_labels(folder, tmp_path, "dcase2017")
    path.write_text("u_0_10.wav\t0\t10\tCow\n")
    with pytest.raises(InputError, match="line 1: expected file, start, end and class"):
        read_labels(folder, tmp_path, "dcase2017")


def test_real_dcase2017_lists(dcase_lists: Path, tmp_path: Path) -> None:
    found = read_labels(dcase_lists, tmp_path, "dcase2017")
    assert Counter(clip.split for clip in found.clips) == {"train": 51_172, "val": 488, "test": 1_103}
    assert found.annotations is not None
    assert {row.label for row in found.annotations.rows} == set(DCASE2017_CLASSES)
    listed = (dcase_lists / "groundtruth_weak_label_training_set.csv").read_text().splitlines()
    assert tuple(dict.fromkeys(line.split("\t")[3] for line in listed)) == DCASE2017_CLASSES


AUDIOSET = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=4
# YTID, start_seconds, end_seconds, positive_labels
"""


def audioset_folder(tmp_path: Path, balanced: str = "") -> Path:
    folder = tmp_path / "lists"
    folder.mkdir(exist_ok=True)
    (folder / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'
        '2,/t/dd00003,"Dog"\n'
    )
    rows = balanced or '--PJHxphWEs, 30.000, 40.000, "/m/05zppz,/m/09x0r"\n_a-b, 0.000, 7.500, "/t/dd00003"\n'
    (folder / "balanced_train_segments.csv").write_text(AUDIOSET + rows)
    (folder / "eval_segments.csv").write_text(AUDIOSET + 'eval_1, 4.000, 14.000, "/m/09x0r"\n')
    return folder


@pytest.mark.parametrize(
    "name",
    ["ab_c_30.000_40.000", "Yab_c_30.000_40.000", "ab_c_30000_40000", "ab_c_30_40", "ab_c_000030", "ab_c"],
)
def test_names_of_downloaded_segments(tmp_path: Path, name: str) -> None:
    source = tmp_path / "media"
    (source / "deep").mkdir(parents=True)
    for other in (f"deep/{name}.mp4", "ab_c_90.000_100.000.mp4", "c_30.000_40.000.mp4"):
        (source / other).touch()
    folder = audioset_folder(tmp_path, 'ab_c, 30.000, 40.000, "/m/09x0r"\n')
    assert read_labels(folder, source, "audioset").clips[0].clip == f"deep/{name}.mp4"


def test_audioset(tmp_path: Path) -> None:
    found = read_labels(audioset_folder(tmp_path), tmp_path, "audioset")
    assert found.classes == ("Speech", "Male speech, man speaking", "Dog")  # the official order
    assert found.annotations is None
    assert found.clips == (
        LabelledClip("--PJHxphWEs_30.000_40.000", ("Male speech, man speaking", "Speech"), "train"),
        LabelledClip("_a-b_0.000_7.500", ("Dog",), "train"),
        LabelledClip("eval_1_4.000_14.000", ("Speech",), "test"),
    )
    rows = "".join(f'v{index}, 0.000, 10.000, "/m/09x0r"\n' for index in range(1000))
    splits = Counter(
        clip.split for clip in read_labels(audioset_folder(tmp_path, rows), tmp_path, "audioset").clips
    )
    assert splits["test"] == 1
    assert splits["val"] / 1000 == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ('a, 0.000, 10.000, "/m/none"\n', r"'/m/none' is not in class_labels_indices\.csv"),
        ('a, 0.000, "/m/09x0r"\n', "line 4: expected video, start, end and labels"),
        ('a, x, 10.000, "/m/09x0r"\n', "line 4: start is 'x'; expected a number"),
        ('a, 0.000, 10.000, "/m/09x0r\n', "not CSV"),
    ],
)
def test_audioset_complaints(tmp_path: Path, rows: str, complaint: str) -> None:
    with pytest.raises(InputError, match=rf"balanced_train_segments\.csv, .*{complaint}"):
        read_labels(audioset_folder(tmp_path, rows), tmp_path, "audioset")


def test_audioset_without_lists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"class_labels_indices\.csv: no such file"):
        read_labels(tmp_path, tmp_path, "audioset")
    folder = audioset_folder(tmp_path)
    for name in ("balanced_train", "eval"):
        (folder / f"{name}_segments.csv").unlink()
    with pytest.raises(
        InputError, match=r"found no segments of AudioSet; expected one of balanced_train_seg"
    ):
        read_labels(folder, tmp_path, "audioset")


def test_real_lists_of_dcase_in_audioset_form(dcase_lists: Path, tmp_path: Path) -> None:
    """The challenge's own lists of segments, with MIDs, read as AudioSet's are: the same clips and labels."""
    mids: dict[str, str] = {}
    weak = read_labels(dcase_lists, tmp_path, "dcase2017")
    folder = tmp_path / "lists"
    folder.mkdir()
    lines = []
    for video, start, end, _, codes in csv.reader((dcase_lists / "testing_set.csv").open(newline="")):
        lines.append(f'{video}, {start}, {end}, "{codes}"\n')
        mids |= dict.fromkeys(codes.split(","), "")
    table = "".join(f"{index},{mid},{mid}\n" for index, mid in enumerate(mids))
    (folder / "class_labels_indices.csv").write_text("index,mid,display_name\n" + table)
    (folder / "eval_segments.csv").write_text(AUDIOSET + "".join(lines))
    found = read_labels(folder, tmp_path, "audioset")
    counts = {clip.clip.removesuffix(".wav"): len(clip.labels) for clip in weak.clips if clip.split == "val"}
    assert {clip.clip: len(clip.labels) for clip in found.clips} == counts
    assert len(found.classes) == 17


def test_real_labels(real_clips: Path) -> None:
    found = read_labels(real_clips / "labels.csv", real_clips)
    assert found.classes == ("car", "cat", "train")
    assert Counter(clip.split for clip in found.clips) == {"train": 120, "val": 24, "test": 60}
    assert {clip.split for clip in found.clips} == set(SPLITS)
    assert found.annotations is not None
    assert found.annotations.visual
    assert found.annotations.audio
