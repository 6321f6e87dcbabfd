"""Feature bags: the layouts and lists that communities exchange, training without video, and refusals."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from avfast import cli, evaluate, train
from avfast.data.batch import collate
from avfast.data.feature_lists import read_lists
from avfast.data.features import FeatureBags, FeatureSource
from avfast.errors import InputError
from avfast.models import ModelConfig, build

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("dog", "siren")
STEPS, GRID, VISUAL, AUDIO = 5, 2, 24, 16
COUNTS = {"train": 24, "val": 8, "test": 8}


def arrays(labels: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A clip whose classes show in one cell at step 1 and sound at step 3, two seconds a step."""
    generator = np.random.default_rng(seed)
    visual = generator.normal(0, 0.1, (STEPS, GRID, GRID, VISUAL)).astype(np.float32)
    audio = generator.normal(0, 0.1, (STEPS, AUDIO)).astype(np.float32)
    visual[..., 2:] += 1  # what every instance has
    audio[:, 2:] += 1
    visual[1, 0, 1, labels] += 4
    audio[3, labels] += 4
    return visual, audio


def clips() -> list[tuple[str, str, list[int]]]:
    """Name, split and labels: the first, the second, both or none."""
    subsets = ([0], [1], [0, 1], [])
    return [(f"{split}{i}", split, subsets[i % 4]) for split, count in COUNTS.items() for i in range(count)]


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of .npy files with labels.csv and annotations.csv."""
    root = tmp_path_factory.mktemp("features")
    rows, truth = ["clip,labels,split"], ["clip,modality,class,start,end,x1,y1,x2,y2"]
    for folder in ("visual", "audio"):
        (root / folder / "sub").mkdir(parents=True)
    for seed, (name, split, labels) in enumerate(clips()):
        visual, audio = arrays(labels, seed)
        np.save(root / f"visual/sub/{name}.npy", visual)
        if name != "test1":
            np.save(root / f"audio/sub/{name}.npy", audio)
        rows.append(f"sub/{name}.mp4,{';'.join(CLASSES[label] for label in labels)},{split}")
        for label in labels:
            truth.append(f"sub/{name}.mp4,visual,{CLASSES[label]},2,4,0.5,0,1,0.5")
            truth.append(f"sub/{name}.mp4,audio,{CLASSES[label]},6,8,,,,")
    (root / "labels.csv").write_text("\n".join([*rows, "lost.mp4,dog,test"]) + "\n")
    (root / "annotations.csv").write_text("\n".join(truth) + "\n")
    return root


# --- reading ----------------------------------------------------------------------------------------


def test_a_bag_is_a_feature_map_with_a_region_per_cell(bags: Path) -> None:
    dataset = FeatureBags(FeatureSource(bags), "train")
    assert (dataset.visual_dim, dataset.audio_dim, len(dataset)) == (VISUAL, AUDIO, COUNTS["train"])
    sample = dataset[dataset.clips.index("sub/train1.mp4")]
    visual, audio = arrays([1], 1)
    assert sample.frames.shape == (STEPS, VISUAL, GRID, GRID)
    np.testing.assert_array_equal(sample.audio, audio)
    assert sample.frame_times.tolist() == [1, 3, 5, 7, 9]
    assert sample.segments.tolist() == [[0, 2], [2, 4], [4, 6], [6, 8], [8, 10]]
    assert sample.target.tolist() == [0, 1]
    batch = collate([dataset[0], sample])
    system = build(ModelConfig(**features_config()), 2).eval()
    pooled = system.visual.pooled(batch.frames, batch.rois).flatten(1)
    np.testing.assert_array_equal(pooled[-STEPS * GRID**2 :], visual.reshape(-1, VISUAL))
    assert batch.region_boxes[-STEPS * GRID**2 :][1].tolist() == [0.5, 0, 1, 0.5]


def features_config(**changes: object) -> dict:
    dims = {"image_size": 1, "visual_dim": VISUAL, "audio_dim": AUDIO}
    return {"backbone": "features", "audio_backbone": "features", **dims, **changes}


def test_clips_without_arrays(bags: Path) -> None:
    dataset = FeatureBags(FeatureSource(bags), "test")
    assert dataset.absent == ["lost.mp4"]
    silent = dataset[dataset.clips.index("sub/test1.mp4")]
    assert silent.audio.shape == (0, AUDIO)
    assert silent.segments.shape == (0, 2)
    assert len(silent.frames) == STEPS


def test_npz_of_instances_without_a_grid(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", visual=np.ones((7, 3)), audio=np.ones((2, 5), np.float16))
    np.savez(tmp_path / "b.npz", audio=np.zeros((2, 5)))
    (tmp_path / "labels.csv").write_text("clip,labels,split\na,x,train\nb,y,train\n")
    dataset = FeatureBags(FeatureSource(tmp_path, seconds=7.0), "train")
    assert dataset[0].frames.shape == (7, 3, 1, 1)
    assert dataset[0].frame_times.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5]
    assert dataset[1].frames.shape == (0, 3, 1, 1)
    assert collate([dataset[0], dataset[1]]).region_offsets.tolist() == [0, 7, 7]


def test_h5_with_an_array_per_clip(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "audio.h5", "w") as file:
        file["a"], file["b"] = np.ones((3, 5)), np.zeros((4, 5))
    (tmp_path / "labels.csv").write_text("clip,labels,split\na.mp4,x,train\nv/b.mp4,y,train\n")
    dataset = FeatureBags(FeatureSource(tmp_path), "train")
    assert [len(sample.audio) for sample in (dataset[0], dataset[1])] == [3, 4]
    assert (dataset.visual_dim, dataset.audio_dim) == (0, 5)


# --- the communities' lists -------------------------------------------------------------------------


@pytest.fixture
def llp(tmp_path: Path) -> Path:
    """LLP's lists, with the oddities of the released ones."""
    header = "filename\tevent_labels\n"
    (tmp_path / "AVVP_train.csv").write_text(f"{header}BjCEufrlXm4_20_30\tSpeech,Dog\n")
    (tmp_path / "AVVP_val_pd.csv").write_text(f"{header}4YdbENYcIyE_23_33\tCar\n")
    (tmp_path / "AVVP_test_pd.csv").write_text(f"{header}-hChcJAh5N0_0_10\tFrying_(food)\n")
    events = "filename\tonset\toffset\tevent_labels\n"
    (tmp_path / "AVVP_eval_audio.csv").write_text(
        f"{events}-hChcJAh5N0_0_10\t0\t4\tFrying_(food)\n-hChcJAh5N0_0_10\t9\t9\tDog\nP7x4FV4lg_570_580\t0\t1\tCar\n"
    )
    (tmp_path / "AVVP_eval_visual.csv").write_text(f"{events}4YdbENYcIyE_23_33\t2\t10\tCar\n")
    return tmp_path


def test_llp(llp: Path) -> None:
    lists = read_lists(llp)
    assert lists.classes == ("Car", "Dog", "Frying_(food)", "Speech")
    assert {clip.clip: (clip.split, clip.labels) for clip in lists.clips} == {
        "-hChcJAh5N0_0_10": ("test", ("Frying_(food)",)),
        "4YdbENYcIyE_23_33": ("val", ("Car",)),
        "BjCEufrlXm4_20_30": ("train", ("Dog", "Speech")),
    }
    rows = [(row.clip, row.modality, row.label, row.start, row.end) for row in lists.annotations.rows]
    assert rows == [
        ("-hChcJAh5N0_0_10", "audio", "Frying_(food)", 0, 4),  # one of no length is no event
        ("4YdbENYcIyE_23_33", "visual", "Car", 2, 10),
    ]
    for folder, size in (("visual", (80, 3)), ("audio", (10, 2))):
        (llp / folder).mkdir()
        np.save(llp / folder / "BjCEufrlXm4.npy", np.ones(size))
    sample = FeatureBags(FeatureSource(llp), "train")[0]
    assert (len(sample.frames), len(sample.audio)) == (80, 10)


AVE_LINES = (
    "Church bell&RUhOCu3LNXM&good&0&10",
    "Bark&3jS8tWfLJxI&good&7&9",
    "Bark&E_1Asfq8it4&good&0&0",
    "Truck&3jS8tWfLJxI&good&0&2",
)


def test_ave_with_order_files(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "Annotations.txt").write_text("\n".join(AVE_LINES) + "\n")
    generator = np.random.default_rng(0)
    audio, visual = generator.random((4, 10, 3)), generator.random((4, 10, 2, 2, 5))
    for name, content in (("audio", audio), ("visual", visual)):
        with h5py.File(tmp_path / f"{name}_feature.h5", "w") as file:
            file["avadataset"] = content
    for split, order in (("train", [3, 0]), ("val", [2]), ("test", [1])):
        with h5py.File(tmp_path / f"{split}_order.h5", "w") as file:
            file["order"] = np.array(order)
    dataset = FeatureBags(FeatureSource(tmp_path), "train")
    assert dataset.clips == ["3jS8tWfLJxI#2", "RUhOCu3LNXM"]
    assert dataset.classes == ["Bark", "Church bell", "Truck"]
    np.testing.assert_allclose(dataset[0].audio, audio[3], rtol=1e-6)
    np.testing.assert_allclose(dataset[0].frames.permute(0, 2, 3, 1), visual[3], rtol=1e-6)
    rows = dataset.annotations().rows
    assert [(row.modality, row.label, row.start, row.end, row.box) for row in rows[-1:]] == [
        ("audio", "Truck", 0, 2, None)
    ]
    assert FeatureBags(FeatureSource(tmp_path), "val").annotations().rows == ()
    with h5py.File(tmp_path / "test_order.h5", "w") as file:
        file["order"] = np.array([4])
    with pytest.raises(InputError, match=r"test_order\.h5: row 4 of 4 lines"):
        read_lists(tmp_path)


@pytest.mark.parametrize("with_all", [True, False])
def test_ave_with_split_lists(tmp_path: Path, with_all: bool) -> None:
    header = "Category&VideoID&Quality&StartTime&EndTime\n"
    if with_all:
        (tmp_path / "Annotations.txt").write_text(header + "\n".join(AVE_LINES))
    for name, line in (("trainSet", 0), ("valSet", 2), ("testSet", 3)):
        (tmp_path / f"{name}.txt").write_text(AVE_LINES[line] + "\n")
    second = "3jS8tWfLJxI#2" if with_all else "3jS8tWfLJxI"
    splits = {clip.clip: clip.split for clip in read_lists(tmp_path).clips}
    assert splits == {"RUhOCu3LNXM": "train", "E_1Asfq8it4": "val", second: "test"}
    (tmp_path / "audio").mkdir()
    np.save(tmp_path / "audio/3jS8tWfLJxI.npy", np.ones((10, 2)))
    assert FeatureBags(FeatureSource(tmp_path), "test").clips == [second]


# --- training ---------------------------------------------------------------------------------------


def options(bags: Path, out: Path, **changes: object) -> train.Options:
    settings = {"features": bags, "out": out, "epochs": 12, "batch_size": 3, "lr": 3e-3}
    return train.Options(**{**settings, "schedule": "constant", "device": "cpu", **changes})


@pytest.fixture(scope="module")
def finished(bags: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train.main(options(bags, out))
    return out


def test_training_finds_class_place_and_time(finished: Path) -> None:
    summary = json.loads((finished / "metrics.json").read_text())
    assert summary["micro"]["f1"] == 1
    assert summary["clips"] == COUNTS["test"]
    places = summary["localization"]
    assert places["visual"]["corloc"] >= 0.9
    assert places["audio"]["segment_f1"] >= 0.5
    with (finished / "scores.csv").open() as file:
        assert len(list(csv.DictReader(file))) == COUNTS["test"] * len(CLASSES)


def test_evaluate_finds_the_features_again(
    finished: Path, bags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate.main(evaluate.Options(run=finished, split="test", out=tmp_path / "same"))
    assert (tmp_path / "same/scores.csv").read_bytes() == (finished / "scores.csv").read_bytes()
    evaluate.main(evaluate.Options(run=finished, data=bags, labels=bags / "labels.csv", out=tmp_path / "b"))
    assert (tmp_path / "b/scores.csv").read_bytes() == (finished / "scores.csv").read_bytes()
    with pytest.raises(InputError, match="--labels: goes with --data"):
        evaluate.main(evaluate.Options(run=finished, labels=bags))


def test_intervals_without_boxes_are_scored_in_time(finished: Path, bags: Path, tmp_path: Path) -> None:
    for folder in ("visual", "audio"):
        (tmp_path / folder).symlink_to(bags / folder)
    (tmp_path / "labels.csv").write_text((bags / "labels.csv").read_text())
    truth = (bags / "annotations.csv").read_text().replace("0.5,0,1,0.5", ",,,")
    (tmp_path / "annotations.csv").write_text(truth)
    evaluate.main(evaluate.Options(run=finished, data=tmp_path, out=tmp_path / "out"))
    places = json.loads((tmp_path / "out/metrics.json").read_text())["localization"]
    assert set(places["visual"]) == set(places["audio"])
    assert places["visual"]["segment_f1"] >= 0.8


@pytest.mark.parametrize(
    "system", ["av-one-stream", "audio-two-stream", "video-two-stream", "video-wsddn", "av-two-stream-rnn"]
)
def test_every_system_on_bags_takes_features(bags: Path, system: str) -> None:
    dataset = FeatureBags(FeatureSource(bags), "test")
    model = build(ModelConfig(system=system, **features_config()), 2)
    batch = collate([dataset[i] for i in range(len(dataset))])
    output = model(batch)
    model.loss(output, batch.targets).backward()
    assert torch.isfinite(output.scores).all()
    assert output.scores.shape == (len(dataset), 2)


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": "gated-crnn"}, "--system gated-crnn: needs the sound itself"),
        ({"backbone": "toy"}, "--backbone, --audio-backbone: have no meaning with --features"),
        ({"data": Path("shards")}, "--features takes the place of --data"),
        ({"features": None, "labels": Path("x")}, "--labels and --clip-seconds go with --features"),
        ({"features": Path("absent")}, "absent: no such folder"),
        ({"features": None, "backbone": "features"}, "learns from --features|visual_dim"),
        ({"visual_weights": "w.pth"}, "takes no weights file"),
        ({"clip_seconds": 0.0}, "--clip-seconds: expected a number above 0"),
        ({"system": "nonsense"}, "--system: expected one of"),
    ],
)
def test_options_that_contradict_features(
    bags: Path, data: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    given = {"data": data} if changes.get("features", bags) is None and "labels" not in changes else {}
    with pytest.raises(InputError, match=message):
        train.main(options(bags, tmp_path / "out", **{**given, **changes}))
    assert not (tmp_path / "out").exists()


def write(name: str, content: object) -> Callable[[Path], None]:
    return lambda root: np.save(root / name, content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (write("audio/b.npy", np.full((2, 3), np.nan)), r"audio/b\.npy: 6 values are not finite"),
        (
            write("audio/b.npy", np.ones((2, 4))),
            r"audio/b\.npy: features of shape \[4\] per step, where \[3\]",
        ),
        (
            write("audio/b.npy", np.ones(3)),
            r"audio/b\.npy: expected numbers of shape \[A, D\], got float64 \[3\]",
        ),
        (write("audio/b.npy", np.array([["x"]])), r"audio/b\.npy: expected numbers"),
        (
            write("visual/b.npy", np.ones((2, 2, 5))),
            r"visual/b\.npy: expected numbers of shape \[P, D\] or \[T, h",
        ),
        (
            write("visual/b.npy", np.ones((2, 3, 3, 5))),
            r"visual/b\.npy: features of shape \[3, 3, 5\] per step",
        ),
        (
            write("audio/b.npy", np.array([{1: print}])),
            r"audio/b\.npy: not an array .*pickled objects are refused",
        ),
        (lambda root: (root / "audio/b.npy").write_bytes(b"damaged"), r"audio/b\.npy: not an array"),
        (lambda root: (root / "audio/b.npy").write_bytes(b""), r"audio/b\.npy: not an array"),
    ],
    ids=["nan", "dim", "vector", "text", "3d", "grid", "pickle", "damaged", "empty"],
)
def test_arrays_that_are_refused_by_name(tmp_path: Path, damage: Callable, message: str) -> None:
    for folder, size in (("visual", (2, 5)), ("audio", (2, 3))):
        (tmp_path / folder).mkdir()
        for clip in "ab":
            np.save(tmp_path / folder / f"{clip}.npy", np.ones(size))
    (tmp_path / "labels.csv").write_text("clip,labels,split\na,x,train\nb,y,train\n")
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        FeatureBags(FeatureSource(tmp_path), "train")[1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no features; expected visual/CLIP.npy"),
        ({"audio/a.npy": None}, "no labels; expected labels.csv"),
        ({"audio/a.npy": None, "labels.csv": "clip,labels,split\nz,x,train\n"}, "no array of any train clip"),
        ({"audio/a.npy": None, "labels.csv": "clip,labels,split\na,x,val\n"}, "no clip in the split 'train'"),
        (
            {"audio/a.npy": None, "AVVP_train.csv": "filename,event_labels\n"},
            r"AVVP_train\.csv: expected a first",
        ),
        (
            {"audio/a.npy": None, "Annotations.txt": "Bark&x\n"},
            r"Annotations\.txt, line 1: expected Category&",
        ),
        ({"audio/a.npy": None, "Annotations.txt": "Bark&x&good&a&1\n"}, "line 1: expected a time in seconds"),
        (
            {"audio.h5": "text", "labels.csv": "clip,labels,split\na,x,train\n"},
            r"audio\.h5: .*not an HDF5 file",
        ),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, files: dict[str, str | None], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if text is None:
            np.save(tmp_path / name, np.ones((2, 3)))
        else:
            (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        FeatureBags(FeatureSource(tmp_path), "train")


def test_h5_needs_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "audio.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"pip install 'avfast\[features\]'"):
        FeatureBags(FeatureSource(tmp_path), "train")


def test_bad_input_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--features", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        cli.run(train.main, train.Options)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
