"""Train a system on prepared clips, choose its threshold on validation, and report on the test split.

Without --data it trains on the embedded default, a generated set of toy events. Commands to start from:

    python -m avfast.train --out runs/first
    python -m avfast.train --data shards --backbone efficientnet-lite0 --out runs/real
    python -m avfast.train --data shards --preset paper --visual-weights torchvision --out runs/paper
    torchrun --standalone --nproc-per-node 4 -m avfast.train --data shards --out runs/four-gpus

Under torchrun, each process trains on its share of every batch, on a GPU of its own if there are any;
--batch-size stays the number of clips of all of them together. With --max-restarts N, a run that loses a
process goes on from its last checkpoint.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import avfast
from avfast import checkpoint, conv_maps, distributed
from avfast.checkpoint import LAST, PREVIOUS
from avfast.cli import run
from avfast.conv_maps import ConvMaps
from avfast.data.features import FeatureBags
from avfast.data.files import TEMPORARY_PREFIX
from avfast.determinism import deterministic
from avfast.distributed import World
from avfast.errors import InputError
from avfast.evaluation import table
from avfast.guards import Guard, guarded
from avfast.models import ModelConfig, System, build
from avfast.models.vggish import load_pca
from avfast.recipes import Keep, Precision, Recipe, Schedule, default_recipe
from avfast.report.curves import draw_curves
from avfast.run_options import RunOptions
from avfast.run_report import write_run_report
from avfast.runs import evaluate, load_best, pick_device
from avfast.sources import DataSource, feature_backbones, open_split
from avfast.training import Trainer


@dataclass
class Options(RunOptions):
    system: str = "av-two-stream"
    """Which system to train: av-two-stream, av-one-stream, audio-two-stream, video-two-stream, video-wsddn,
    gated-crnn, cvssp-fusion or av-two-stream-rnn."""
    preset: Literal["toy", "paper"] = "toy"
    """toy: small networks trained from scratch on a laptop. paper: AlexNet and VGGish as published."""
    backbone: str | None = None
    """Visual network: toy, alexnet, vgg16 or efficientnet-lite0. Default: the preset's."""
    audio_backbone: str | None = None
    """Audio network: toy, vggish or yamnet. Default: the preset's."""
    visual_weights: str | None = None
    """State dict of the visual network, as torchvision names its parameters: a path, a URL (#sha256=...
    checks it), or torchvision for its published AlexNet or VGG16."""
    audio_weights: str | None = None
    """State dict of the VGGish PyTorch port: a path, a URL, or torchvggish for the port's own."""
    vggish_relu: bool = True
    """End VGGish in a ReLU, as its PyTorch port does and the original does not."""
    vggish_pca: str | None = None
    """PCA parameters of VGGish (a path, a URL, or torchvggish): embeddings are then whitened and written in 8
    bits, as those released with AudioSet."""
    train_conv: bool = False
    """Also train the conv layers of pretrained networks."""
    image_size: int | None = None
    """Side that frames are stretched to, in pixels. Default: what suits the backbone."""
    proposals: int | None = None
    """Regions per frame, the best by objectness. Default: the preset's."""
    audio_hop: float | None = None
    """Seconds from one audio window of 0.96 s to the next. Default: 0.48."""
    dropout: float | None = None
    """Share of features that training drops, from 0 to below 1. Default: 0.5."""
    l2_normalise: bool = True
    """Divide a modality's clip scores by their norm before modalities are added."""
    instance_softmax: bool = True
    """Softmax over a clip's regions or segments on the localisation stream."""
    crnn_head: Literal["tagging", "detection"] | None = None
    """Head and pooling of the gated CRNN: one for clips, or one for intervals. Default: tagging."""
    crnn_channels: int | None = None
    """Width of the gated CRNN. Default: 64 as published, 16 in the toy preset."""
    crnn_members: int | None = None
    """Networks that cvssp-fusion averages. Default: the preset's."""
    epochs: int | None = None
    """Passes over the training split. Default: what suits the system."""
    batch_size: int | None = None
    """Clips per step. Default: what suits the system."""
    lr: float | None = None
    """Learning rate of Adam. Default: what suits the system."""
    weight_decay: float | None = None
    """Decoupled weight decay. Default: what suits the system."""
    schedule: Schedule | None = None
    """Learning rate over the steps; cosine falls to zero. Default: what suits the system."""
    warmup: int | None = None
    """Steps over which the learning rate rises at first. Default: 0."""
    clip_grad: float | None = None
    """Largest norm of a step's gradient, 0 for no limit. Default: what suits the system."""
    average: int | None = None
    """Average the weights of so many of the last epochs; 0 does not. Default: what suits the system."""
    patience: int | None = None
    """Stop after so many epochs without a better validation score; 0 never stops. Default: 0."""
    keep: Keep | None = None
    """Keep the epoch that is best on validation, or the last. Default: the last where clips are few."""
    balanced: bool | None = None
    """Draw clips class by class in turn. Default: only for the gated CRNN."""
    class_weights: bool | None = None
    """Let a class's positives and negatives weigh the same in the loss. Default: no."""
    spec_augment: bool | None = None
    """Mask bands and times of the sound in training. Default: yes in the toy preset, no in the paper's."""
    flip: bool | None = None
    """Mirror half of the clips, with their regions, in training. Default: no."""
    mixup: float | None = None
    """Share of clips that are joined with another, bags and labels, in training. Default: 0."""
    precision: Precision | None = None
    """bfloat16 trains in mixed precision; slow on CPUs without instructions for it. Default: float32."""
    compile: bool | None = None
    """Let torch.compile generate code for the model, which takes a minute at first. Default: no."""


def main(options: Options) -> None:
    """Train, then report on the test split; under ``torchrun``, as one of its ranks."""
    check_numbers(options)
    with deterministic(options.deterministic), guarded(options.out) as guard, distributed.joined() as world:
        guard.quiet = not world.main
        train_and_test(options, guard, world)


def train_and_test(options: Options, guard: Guard, world: World) -> None:
    """All that ``main`` does; the guard says in one line what ended it from outside."""
    device, ops = pick_device(options.device, world)
    data = options.source()
    config = model_config(options, data)
    recipe = training_recipe(options, config)
    guard.costly = {
        "--batch-size": recipe.batch_size,
        "--proposals": config.proposals,
        "--image-size": config.image_size,
    }
    if recipe.compile and world.size > 1:
        raise InputError("--compile: is for one process; leave it out under torchrun")
    options = replace(options, resume=world.once(lambda: resumes(options, world)))
    maps = cached_maps(options, data, config, recipe)
    pictures = {"train": maps is None, "val": maps is None, "test": True}
    splits = {split: open_split(data, split, config, seen) for split, seen in pictures.items()}
    counts = ", ".join(f"{len(dataset)} {split}" for split, dataset in splits.items())
    ranks = f"{world.size} ranks; " if world.size > 1 else ""
    print(
        f"avfast {avfast.__version__}: {ranks}{ops}; {counts} clips, {len(splits['train'].classes)} classes"
    )
    for split, dataset in splits.items():
        if isinstance(dataset, FeatureBags) and dataset.absent:
            count, example = len(dataset.absent), dataset.absent[0]
            print(f"left out: {count} {split} clips without features, such as {example}")
    with world.local_turns():  # for what is downloaded
        model = new_model(options, config, len(splits["train"].classes)).to(device)
    if not world.main:  # whose random numbers go on where the initial weights end
        world.seed(options.seed)
    trainer = Trainer(options, recipe, model, splits["train"], splits["val"], device, maps, world, guard)
    trainer.train()
    if world.main:
        draw_curves(trainer.log.lines(), options.out / "curves.png")
    trained = load_best(options.out, device, world=world)
    print(table(evaluate(trained, splits["test"], "test", options.out, options.workers, world)))
    if world.main and options.report:
        print(f"{write_run_report(options.out, trained, splits['test'])}: to look at")


def check_numbers(options: Options) -> None:
    """Refuse numbers that make no sense, by the name of their option."""
    for name in ("clip_seconds", "epochs", "batch_size", "lr", "log_every", "save_every"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')}: expected a number above 0, got {value}")
    at_least_0 = ("seed", "weight_decay", "warmup", "clip_grad", "average", "patience", "mixup", "profile")
    for name in (*at_least_0, "workers", "cache_gib"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"--{name.replace('_', '-')}: expected 0 or a number above, got {value}")
    if options.mixup is not None and options.mixup > 1:
        raise InputError(f"--mixup: expected a share of at most 1, got {options.mixup}")


def model_config(options: Options, data: DataSource) -> ModelConfig:
    """The model that the options describe, for the given data."""
    given = feature_backbones(data, options.system)
    if given and (options.backbone or options.audio_backbone):
        raise InputError("--backbone, --audio-backbone: have no meaning with --features; leave them out")
    backbones = given or {"backbone": options.backbone, "audio_backbone": options.audio_backbone}
    try:
        return ModelConfig.from_preset(
            options.preset,
            system=options.system,
            **backbones,
            image_size=options.image_size,
            proposals=options.proposals,
            audio_hop=options.audio_hop,
            train_conv=options.train_conv,
            dropout=options.dropout,
            l2_normalise=options.l2_normalise,
            vggish_relu=options.vggish_relu,
            vggish_pca=options.vggish_pca is not None,
            instance_softmax=options.instance_softmax,
            spec_augment=options.spec_augment,
            crnn_head=options.crnn_head,
            crnn_channels=options.crnn_channels,
            crnn_members=options.crnn_members,
        )
    except ValueError as error:
        raise InputError(f"--{str(error).replace('_', '-', 1)}") from error


def training_recipe(options: Options, config: ModelConfig) -> Recipe:
    """The recipe that suits the model, with what the options change."""
    recipe = default_recipe(config)
    changes = {name: getattr(options, name) for name in asdict(recipe)}
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})


def resumes(options: Options, world: World) -> bool:
    """Whether the run goes on from a checkpoint: as asked, or since ``torchrun`` started its ranks again.

    Raises:
        InputError: There is nothing to resume, or a run would be overwritten.
    """
    resume, last, previous = options.resume, options.out / LAST, options.out / PREVIOUS
    if world.restarts and checkpoint.resumable(options.out):
        state, _ = checkpoint.load_latest(last, previous, "cpu", ("launch",))
        resume |= state["launch"] == world.launch  # else another command's, which this one must not touch
    check_folder(options.out, resume)
    return resume


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse to overwrite a run, or to resume nothing."""
    if resume and not checkpoint.resumable(folder):
        raise InputError(f"{folder}: nothing to resume, {LAST} is not there; leave out --resume to start")
    files = folder.iterdir() if folder.is_dir() and not resume else ()
    if any(not path.name.startswith(TEMPORARY_PREFIX) for path in files):
        raise InputError(f"{folder}: not empty; go on with --resume, or choose another --out")


def cached_maps(options: Options, data: DataSource, config: ModelConfig, recipe: Recipe) -> ConvMaps | None:
    """The conv maps to read in place of frames, if there are any."""
    maps = conv_maps.find(data, config) if options.cached_features and isinstance(data, Path) else None
    if maps is not None:
        if recipe.flip:
            raise InputError(
                f"--flip: mirrors pictures, but {maps.folder} holds their conv maps; leave one out "
                "(the maps by --no-cached-features)"
            )
        print(f"regions are read from {maps.folder}")
    return maps


def new_model(options: Options, config: ModelConfig, classes: int) -> System:
    """The model before the first step."""
    random.seed(options.seed)
    np.random.seed(options.seed % 2**32)  # noqa: NPY002 - the global generator, for libraries that use it
    torch.manual_seed(options.seed)
    model = build(config, classes)
    if not options.resume:  # else its weights come from the checkpoint
        for note in model.load_pretrained(options.visual_weights, options.audio_weights):
            print(note)
        if options.vggish_pca is not None:
            print(load_pca(model, options.vggish_pca))
    return model


if __name__ == "__main__":
    run(main, Options)
