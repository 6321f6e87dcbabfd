"""Train a system on prepared clips, choose its threshold on validation, and report on the test split.

Without --data it trains on the embedded default, a generated set of toy events. Commands to start from:

    python -m avfast.train --out runs/first
    python -m avfast.train --data shards --backbone efficientnet-lite0 --out runs/real
    python -m avfast.train --data shards --preset paper --visual-weights torchvision --out runs/paper
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

import avfast
from avfast import checkpoint
from avfast.cache import Budget, CachedDataset, CachedRegions
from avfast.cli import run
from avfast.data import Batch, Sample
from avfast.data.files import TEMPORARY_PREFIX, write_json
from avfast.data.shards import ShardDataset
from avfast.errors import InputError
from avfast.evaluation import (
    THRESHOLD_RULES,
    Predictions,
    ThresholdRule,
    Thresholds,
    choose_thresholds,
    predict,
    table,
)
from avfast.metrics import classification
from avfast.models import ModelConfig, System, build
from avfast.models.vggish import load_pca
from avfast.report.curves import draw_curves
from avfast.runs import BEST, LAST, RunLog, evaluate, load_batches, load_best, open_split, pick_device

GIB = 2**30


@dataclass(frozen=True)
class Recipe:
    """How a model is optimised, by AdamW."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    schedule: Literal["constant", "cosine"]


FROM_SCRATCH = Recipe(epochs=12, batch_size=16, lr=2e-3, weight_decay=1e-4, schedule="cosine")
FEW_CLIPS = Recipe(epochs=20, batch_size=16, lr=1e-3, weight_decay=1e-4, schedule="cosine")
PAPER = Recipe(epochs=12, batch_size=24, lr=1e-5, weight_decay=0.0, schedule="constant")

RECIPES = {"toy": FROM_SCRATCH, "efficientnet-lite0": FEW_CLIPS, "alexnet": PAPER, "vgg16": PAPER}
"""By visual backbone."""


@dataclass
class Options:
    data: Path | None = None
    """Folder that avfast.prepare wrote; the embedded default when left out."""
    system: str = "av-two-stream"
    """Which system to train: av-two-stream, av-one-stream, audio-two-stream, video-two-stream, video-wsddn,
    gated-crnn, cvssp-fusion or av-two-stream-rnn."""
    preset: Literal["toy", "paper"] = "toy"
    """toy: small networks trained from scratch on a laptop. paper: AlexNet and VGGish as published."""
    out: Path = Path("runs/av-two-stream")
    """Folder of the run; must be new or empty, unless --resume is given."""
    resume: bool = False
    """Go on from the last checkpoint in --out; all other options must be as they were."""
    seed: int = 0
    """Decides the initial weights, dropout and the order of clips."""
    backbone: str | None = None
    """Visual network: toy, alexnet, vgg16 or efficientnet-lite0. Default: the preset's."""
    audio_backbone: str | None = None
    """Audio network: toy or vggish. Default: the preset's."""
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
    """Passes over the training split. Default: what suits the backbone."""
    batch_size: int | None = None
    """Clips per step. Default: what suits the backbone."""
    lr: float | None = None
    """Learning rate of Adam. Default: what suits the backbone."""
    weight_decay: float | None = None
    """Decoupled weight decay. Default: what suits the backbone."""
    schedule: Literal["constant", "cosine"] | None = None
    """Learning rate over the steps; cosine falls to zero. Default: what suits the backbone."""
    thresholds: ThresholdRule = "global"
    """Chosen on validation: one for all classes, for micro-F1, or one per class, for the class's own F1."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = 0
    """Processes that read clips; 0 reads in the training process, which then keeps clips in memory."""
    cache_gib: float = 2.0
    """Memory for clips and for regions of frozen conv layers, in GiB; the rest is made anew each time."""
    log_every: int = 10
    """Steps from one line in metrics.jsonl to the next."""
    save_every: int = 100
    """Steps between checkpoints, besides the one after each epoch."""
    tensorboard: bool = False
    """Also write events for TensorBoard into --out (needs avfast[tensorboard])."""


@dataclass
class Progress:
    """Where training stands: after ``position`` steps of ``epoch``, ``step`` steps in all."""

    epoch: int = 0
    position: int = 0
    step: int = 0
    best: tuple[float, float] = (-1.0, -1.0)
    """Micro-F1 and mAP on validation; the second decides between equals of the first."""
    loss: float = 0.0
    """Sum over the steps since the last line of the log."""
    logged: int = 0
    """The step of that line."""


def main(options: Options) -> None:
    """Train, then report on the test split."""
    check_numbers(options)
    device, ops = pick_device(options.device)
    config = model_config(options)
    recipe = training_recipe(options, config.backbone)
    check_folder(options.out, options.resume)
    splits = {split: open_split(options.data, split, config) for split in ("train", "val", "test")}
    counts = ", ".join(f"{len(dataset)} {split}" for split, dataset in splits.items())
    print(f"avfast {avfast.__version__}: {ops}; {counts} clips, {len(splits['train'].classes)} classes")
    model = new_model(options, config, len(splits["train"].classes)).to(device)
    trainer = Trainer(options, recipe, model, splits["train"], splits["val"], device)
    trainer.train()
    draw_curves(trainer.log.lines(), options.out / "curves.png")
    trained = load_best(options.out, device)
    print(table(evaluate(trained, splits["test"], "test", options.out, options.workers)))


def check_numbers(options: Options) -> None:
    """Refuse numbers that make no sense, by the name of their option."""
    for name in ("epochs", "batch_size", "lr", "log_every", "save_every"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')}: expected a number above 0, got {value}")
    for name in ("seed", "weight_decay", "workers", "cache_gib"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"--{name.replace('_', '-')}: expected 0 or a number above, got {value}")


def model_config(options: Options) -> ModelConfig:
    """The model that the options describe."""
    try:
        return ModelConfig.from_preset(
            options.preset,
            system=options.system,
            backbone=options.backbone,
            audio_backbone=options.audio_backbone,
            image_size=options.image_size,
            proposals=options.proposals,
            audio_hop=options.audio_hop,
            train_conv=options.train_conv,
            l2_normalise=options.l2_normalise,
            vggish_relu=options.vggish_relu,
            vggish_pca=options.vggish_pca is not None,
            instance_softmax=options.instance_softmax,
            crnn_head=options.crnn_head,
            crnn_channels=options.crnn_channels,
            crnn_members=options.crnn_members,
        )
    except ValueError as error:
        raise InputError(f"--{str(error).replace('_', '-', 1)}") from error


def training_recipe(options: Options, backbone: str) -> Recipe:
    """The backbone's recipe with what the options change."""
    changes = {name: getattr(options, name) for name in asdict(RECIPES[backbone])}
    return replace(RECIPES[backbone], **{k: v for k, v in changes.items() if v is not None})


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse to overwrite a run, or to resume nothing."""
    if resume and not (folder / LAST).is_file():
        raise InputError(f"{folder}: nothing to resume, {LAST} is not there; leave out --resume to start")
    files = folder.iterdir() if folder.is_dir() and not resume else ()
    if any(not path.name.startswith(TEMPORARY_PREFIX) for path in files):
        raise InputError(f"{folder}: not empty; go on with --resume, or choose another --out")


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


def cosine(lr: float, step: int, steps: int) -> float:
    """The rate after ``step`` of ``steps`` steps, from ``lr`` down to 0 (Loshchilov and Hutter 2017)."""
    return lr * (1 + math.cos(math.pi * step / steps)) / 2


class Trainer:
    """Trains a model on one split and keeps the state that did best on another."""

    def __init__(
        self,
        options: Options,
        recipe: Recipe,
        model: System,
        train: ShardDataset,
        val: ShardDataset,
        device: torch.device,
    ) -> None:
        self.options, self.recipe, self.model, self.device = options, recipe, model, device
        self.classes = list(train.classes)
        budget = Budget(int(options.cache_gib * GIB))
        self.regions_of = CachedRegions(model, budget)
        keep = options.workers == 0  # a worker's memory is its own
        self.train_set = CachedDataset(train, budget) if keep else train
        self.val_set = CachedDataset(val, budget) if keep else val
        self.config = {
            "data": None if options.data is None else str(options.data.resolve()),
            "preparation": train.preparation,  # these two say how to treat other videos like the clips
            "clip_seconds": train.clip_seconds(),
            "model": asdict(model.config),
            "recipe": asdict(recipe),
            "thresholds": options.thresholds,
            "seed": options.seed,
            "classes": self.classes,
            "clips": fingerprint(train.clips),
        }
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.progress = Progress()
        if options.resume:
            self.restore()
        else:
            options.out.mkdir(parents=True, exist_ok=True)
            model.fit_statistics(self.all_of(self.train_set))
            self.save()  # first of all files, so that a run that is killed at once can be resumed
        self.log = RunLog(options.out, self.progress.step, options.tensorboard)
        write_json(options.out / "config.json", self.config)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train_set) / self.recipe.batch_size)

    @property
    def steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    def train(self) -> None:
        """Run all epochs that are left."""
        with tqdm(total=self.steps, initial=self.progress.step, unit="step", disable=None) as bar:
            while self.progress.epoch < self.recipe.epochs:
                for batch in self.batches():
                    self.step(batch)
                    bar.update()
                self.finish_epoch()

    def batches(self) -> Iterator[Batch]:
        """The batches of the current epoch that are left; a function of seed, epoch and position alone."""
        progress, clips = self.progress, len(self.train_set)
        order = np.random.default_rng([self.options.seed, progress.epoch]).permutation(clips).tolist()
        size, workers = self.recipe.batch_size, self.options.workers
        return load_batches(self.train_set, order, size, workers, skip=progress.position)

    def step(self, batch: Batch) -> None:
        """Learn from one batch."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        batch = batch.to(self.device, non_blocking=True)
        output = self.model(batch, self.regions_of(batch))
        loss = self.model.loss(output, batch.targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.after_step(loss.item(), batch.clips)

    def learning_rate(self) -> float:
        """The rate of the next step."""
        if self.recipe.schedule == "constant":
            return self.recipe.lr
        return cosine(self.recipe.lr, self.progress.step, self.steps)

    def after_step(self, loss: float, clips: Sequence[str]) -> None:
        """Count, log and save."""
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {self.progress.step + 1} (clips {', '.join(clips)}); "
                f"lower --lr, or look at these clips; {self.options.out / LAST} holds an earlier state"
            )
        progress = self.progress
        progress.step += 1
        progress.position += 1
        progress.loss += loss
        if progress.step % self.options.log_every == 0:
            self.log_loss()
        if progress.step % self.options.save_every == 0 and progress.position < self.steps_per_epoch:
            self.save()

    def log_loss(self) -> None:
        """Write the mean loss since the last line."""
        progress = self.progress
        if progress.step > progress.logged:
            mean = progress.loss / (progress.step - progress.logged)
            self.log.write(
                {"step": progress.step, "epoch": progress.epoch, "loss": mean, "lr": self.learning_rate()}
            )
        progress.loss, progress.logged = 0.0, progress.step

    def finish_epoch(self) -> None:
        """Validate, keep the model if it is the best so far, and save."""
        self.log_loss()
        predictions = self.predict_val()
        thresholds = {rule: choose_thresholds(predictions, rule) for rule in THRESHOLD_RULES}
        chosen = thresholds[self.options.thresholds].scores
        figures = classification(predictions.scores, predictions.labels, chosen, self.classes)
        val = {
            "loss": predictions.loss,
            "micro_f1": figures["micro"]["f1"],
            "map": figures["map"],
        }
        progress = self.progress
        self.log.write({"step": progress.step, "epoch": progress.epoch, "val": val})
        progress.epoch, progress.position = progress.epoch + 1, 0
        tqdm.write(
            f"epoch {progress.epoch}/{self.recipe.epochs}: validation loss {val['loss']:.3f}, "
            f"micro-F1 {val['micro_f1']:.3f}, mAP {val['map']:.3f}"
        )
        if (val["micro_f1"], val["map"]) > progress.best:
            progress.best = (val["micro_f1"], val["map"])
            self.save_best(thresholds, val)
        self.save()

    def predict_val(self) -> Predictions:
        return predict(self.model, self.all_of(self.val_set), self.device, self.regions_of)

    def all_of(self, clips: Dataset[Sample]) -> Iterator[Batch]:
        """Batches of a whole split, in its order."""
        order = range(len(clips))  # type: ignore[arg-type]
        return load_batches(clips, order, self.recipe.batch_size, self.options.workers)

    def save(self) -> None:
        """Write all that ``restore`` needs."""
        checkpoint.save(
            self.options.out / LAST,
            {
                "config": self.config,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": asdict(self.progress),
                "random": checkpoint.random_states(),
            },
        )

    def save_best(self, thresholds: Mapping[ThresholdRule, Thresholds], val: dict[str, float]) -> None:
        """Write the model with what is needed to use it."""
        checkpoint.save(
            self.options.out / BEST,
            {
                "config": self.config,
                "model": self.model.state_dict(),
                "classes": self.classes,
                "thresholds": {rule: values.state() for rule, values in thresholds.items()},
                "epoch": self.progress.epoch,
                "step": self.progress.step,
                "val": val,
            },
        )

    def restore(self) -> None:
        """Go back to the last checkpoint, exactly."""
        state = checkpoint.load(self.options.out / LAST, self.device)
        before, now = dict(flat(state["config"])), dict(flat(self.config))
        changed = [name for name in now if name != "data" and now[name] != before.get(name)]
        if changed:
            raise InputError(
                f"{self.options.out}: was started with other options or data ({', '.join(changed)} differ); "
                "repeat the command that started it, or choose another --out"
            )
        checkpoint.fill(self.model, state["model"], self.options.out / LAST)
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        checkpoint.restore_random_states(state["random"])


def fingerprint(clips: Sequence[str]) -> str:
    """A short name for a list of clips, to notice when another one is used."""
    return hashlib.sha256("\n".join(clips).encode()).hexdigest()[:16]


def flat(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every option of a nested configuration by its own name."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flat(value)
        else:
            yield name, value


if __name__ == "__main__":
    run(main, Options)
