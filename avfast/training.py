"""Training: the loop that follows a recipe, exactly resumable."""

from __future__ import annotations

import hashlib
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset
from tqdm import tqdm

from avfast import checkpoint, sources
from avfast.cache import Budget, CachedDataset, CachedRegions, CachedSegments
from avfast.checkpoint import LAST, PREVIOUS
from avfast.compiling import code_generation
from avfast.conv_maps import ConvMaps
from avfast.data.batch import Batch, Sample
from avfast.data.files import write_json
from avfast.distributed import ALONE, World
from avfast.errors import InputError, Interrupted
from avfast.evaluation import (
    THRESHOLD_RULES,
    Predictions,
    ThresholdRule,
    Thresholds,
    choose_thresholds,
    join,
    predict_parts,
)
from avfast.faults import Faults
from avfast.guards import MOST_SKIPPED_IN_A_ROW, Guard, Rewind, gradient_norm, spoilt
from avfast.metrics import classification
from avfast.models import Output, System
from avfast.models.augment import flip, join_bags, random_partners
from avfast.models.sync_norm import synchronise
from avfast.profiling import BOOKKEEPING, VALIDATION, StepProfiler
from avfast.progress import Progress
from avfast.recipes import Recipe
from avfast.run_options import RunOptions
from avfast.runs import BEST, LOG, NAN_BATCH, RunLog, load_batches
from avfast.sampling import balanced_weights, epoch_order, in_batches
from avfast.sources import ClipDataset

GIB = 2**30


class Trainer:
    """Trains a model on one split and keeps the state that did best on another."""

    def __init__(
        self,
        options: RunOptions,
        recipe: Recipe,
        model: System,
        train: ClipDataset,
        val: ClipDataset,
        device: torch.device,
        maps: ConvMaps | None = None,
        world: World = ALONE,
        guard: Guard | None = None,
    ) -> None:
        """Set up a run, or go back to where it was.

        Args:
            options: Of the run.
            recipe: How to optimise.
            model: On ``device``, as it is before the first step.
            train: The clips to learn from.
            val: The clips to validate on.
            device: Where to compute.
            maps: Conv maps that take the place of the clips' frames.
            world: The ranks that train together.
            guard: Receives signals, if anything does.

        Raises:
            InputError: The maps are of another model, or the run to resume was started in another way or
                cannot be read.
        """
        self.options, self.recipe, self.model, self.device = options, recipe, model, device
        self.world = world
        self.classes = list(train.classes)
        labels = train.labels() if recipe.balanced or recipe.class_weights else None
        self.balanced_by = labels if recipe.balanced else None
        budget = Budget(int(options.cache_gib * GIB))
        self.regions_of = CachedRegions(model, budget, maps)
        self.embedded = CachedSegments(model, budget)
        keep = options.workers == 0  # a worker's memory is its own
        self.train_set = CachedDataset(train, budget) if keep else train
        self.val_set = CachedDataset(val, budget) if keep else val
        self.config = {
            **sources.record(options.source()),
            "preparation": train.preparation,  # these two say how to treat other videos like the clips
            "clip_seconds": train.clip_seconds(),
            "model": asdict(model.config),
            "recipe": asdict(recipe),
            "thresholds": options.thresholds,
            "seed": options.seed,
            "deterministic": options.deterministic,
            "classes": self.classes,
            "clips": fingerprint(train.clips),
        }
        self.check_ranks()
        self.every_class = torch.arange(len(self.classes), device=device)
        self.guard = guard or Guard(options.out)
        self.faults = {"train": Faults("train", len(train)), "val": Faults("val", len(val))}
        if self.world.size > 1:
            synchronise(model, device)
        self.learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learned, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.averaged = AveragedModel(model, use_buffers=True) if recipe.average > 1 else None
        if recipe.compile:
            model.compile(**code_generation(device))
        weights = balanced_weights(labels).to(device) if labels is not None and recipe.class_weights else None
        self.balance = weights
        self.progress = Progress()
        if options.resume:
            self.restore()
        visual = getattr(model, "visual", None)
        if maps is not None and visual is not None:
            maps.check(train.root, visual)
        if not options.resume:
            if self.world.main:
                options.out.mkdir(parents=True, exist_ok=True)
            model.fit_statistics(self.all_of(self.train_set, "train"), self.world.total)
            self.save()  # first of all files, so that a run that is killed at once can be resumed
        self.replica: nn.Module | None = model if self.world.size == 1 else None
        """The model as all ranks train it; made at the first step, as that takes a batch."""
        self.profiler = StepProfiler(options.profile if world.main else 0, device, options.out)
        self.log = RunLog(options.out, self.progress.step, options.tensorboard, self.world.main)
        self.log_faults()
        if self.world.main:
            write_json(options.out / "config.json", self.config)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train_set) / self.recipe.batch_size)

    @property
    def steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.recipe.patience <= self.progress.stale

    @property
    def late_epochs(self) -> int:
        """How many epochs the mean of the late ones is to hold at the end of this one."""
        return self.progress.epoch + 1 - max(0, self.recipe.epochs - self.recipe.average)

    @property
    def candidate(self) -> System:
        """What an epoch ends with: the model, or from the first late epoch on their mean."""
        if self.averaged is not None and self.averaged.n_averaged > 0:
            return cast(System, self.averaged.module)
        return self.model

    def train(self) -> None:
        """Run all epochs that are left.

        Raises:
            Interrupted: A signal came; the step was finished and all is saved.
            InputError: A step is not finite, and not to be skipped.
        """
        bar = tqdm(total=self.steps, initial=self.progress.step, unit="step", disable=self.world.quiet)
        with bar, self.guard.deferred():
            while self.progress.epoch < self.recipe.epochs and not self.stopped:
                for batch in self.batches():
                    self.step(batch)
                    bar.update()
                    self.heed_signals()
                self.finish_epoch()
            self.heed_signals()
        self.profiler.close()
        for line in self.missed():
            tqdm.write(f"{line}; {LOG} names them")

    def missed(self) -> Iterator[str]:
        """What the run had to do without, a line each."""
        if self.progress.skipped:
            yield f"skipped: the clips of {self.progress.skipped} steps that were not finite"
        for faults in self.faults.values():
            if faults.reasons:
                yield faults.summary()

    def heed_signals(self) -> None:
        """Save and stop, if a signal came."""
        if self.world.any(self.guard.signalled is not None):
            self.log_faults()
            self.save()
            raise Interrupted(self.guard.signalled or signal.SIGTERM)

    def heeding(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches of a validation that a signal may cut short; resuming starts it again."""
        for batch in batches:
            if self.world.size == 1:  # of many ranks each has its own number of these batches
                self.heed_signals()
            yield batch

    def batches(self) -> Iterator[Batch]:
        """This rank's shares of the batches of the current epoch that are left.

        The batches are a function of seed, epoch and position alone, whatever the number of ranks.
        """
        clips, size, first = len(self.train_set), self.recipe.batch_size, self.progress.position
        order = epoch_order(clips, self.options.seed, self.progress.epoch, self.balanced_by)
        # A rank that a small batch leaves without a clip reads one, to know what a batch looks like.
        shares = (self.world.share(batch) or batch[:1] for batch in in_batches(order, size, first))
        loaded = load_batches(self.train_set, shares, self.options.workers, self.faults["train"])
        for whole, batch in zip(in_batches(order, size, first), loaded, strict=True):
            yield batch if self.world.share(whole) else batch.without_clips()

    def step(self, batch: Batch) -> None:
        """Learn from one batch, each rank from its share of it."""
        everywhere = self.world.total(torch.tensor(float(batch.size))).item()
        if not everywhere:  # none of its clips can be read
            self.after_step(None)
            return
        if self.replica is None:
            self.replica = self.replicated(batch)
        recipe, world, clips = self.recipe, self.world, batch.clips
        before, part = Rewind(self.model, self.device), self.profiler.part
        part("to device")
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        batch = batch.to(self.device, non_blocking=True)
        part("regions")
        batch, pooled = self.augmented(batch)
        part("forward")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            output = self.replica(batch, pooled)
        # The mean over ranks, which gradients are too, is then the mean over all clips of the batch.
        loss = self.loss(output, batch) * (batch.size * world.size / everywhere)
        part("backward")
        self.optimizer.zero_grad()
        loss.backward()
        part("optimiser")
        norm = gradient_norm(self.learned, recipe.clip_grad)
        mean = world.total(loss.detach()) / world.size
        figures = torch.stack([mean.float(), norm.float()]).tolist()  # one wait for the device
        if all(map(math.isfinite, figures)):
            self.optimizer.step()
            self.progress.skipped_in_a_row = 0
            self.after_step(figures[0])
        else:
            self.skip_or_stop(figures, clips, before)
        self.profiler.step_done()

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """The mean over the clips of this rank."""
        weights = None if self.balance is None else self.balance[batch.targets.long(), self.every_class]
        return self.model.loss(output, batch.targets, weights)

    def replicated(self, batch: Batch) -> nn.Module:
        """The model as all ranks train it together.

        DDP settles by its first backward pass in which order it sums. One over no clip does that, so that a
        run that goes on sums as the one before it did, bit for bit.
        """
        replica = self.world.parallel(self.model)
        if self.device.type == "cpu":
            self.model.eval()  # draws no random numbers
            nothing = batch.without_clips().to(self.device)
            self.loss(replica(nothing, self.regions_of(nothing)), nothing).backward()
        return replica

    def augmented(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """A batch with its pooled regions, changed at random as the recipe says."""
        batch = self.embedded(batch)
        if not batch.size:
            return batch, self.regions_of(batch)
        if self.recipe.flip:
            batch = flip(batch, torch.rand(batch.size) < 0.5)
        pooled = self.regions_of(batch)
        if self.recipe.mixup:
            batch, pooled = join_bags(batch, pooled, random_partners(batch.size, self.recipe.mixup))
        return batch, pooled

    def learning_rate(self) -> float:
        """The rate of the next step."""
        return self.recipe.learning_rate(self.progress.step, self.steps)

    def skip_or_stop(self, figures: Sequence[float], clips: Sequence[str], before: Rewind) -> None:
        """Leave out a step whose loss and norm are not finite, or stop where resuming repeats it."""
        progress, place = self.progress, {"step": self.progress.step + 1, "epoch": self.progress.epoch}
        shares = self.world.collect(clips)
        clips = self.world.once(lambda: shares)
        loss, norm = map(str, figures)  # JSON has no NaN
        found = {"loss": loss, "gradient_norm": norm, "clips": list(clips)}
        if self.options.on_nan == "stop" or progress.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            if self.world.main:
                write_json(self.options.out / NAN_BATCH, {**place, **found, "parameters": spoilt(self.model)})
            before.all_back()
            self.save()
            raise InputError(
                f"the loss is {loss} at step {place['step']}, the norm of the gradient {norm}; "
                f"{self.options.out / NAN_BATCH} names the {len(clips)} clips ({clips[0]}, ...). Start again "
                "with a lower --lr or with --clip-grad; --resume repeats this very step, --resume --on-nan "
                "skip leaves it out"
            )
        before.buffers_back()
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        self.log.write({**place, "skipped": found})
        self.after_step(None)

    def after_step(self, loss: float | None) -> None:
        """Count, log and save; a step without loss has taught nothing."""
        self.profiler.part(BOOKKEEPING)
        progress = self.progress
        progress.step += 1
        progress.position += 1
        progress.loss += loss or 0.0
        progress.lost += loss is None
        self.log_faults()
        if progress.step % self.options.log_every == 0:
            self.log_loss()
        if progress.step % self.options.save_every == 0 and progress.position < self.steps_per_epoch:
            self.save()

    def log_faults(self) -> None:
        """Tell all ranks, and the log, which clips turned out to be unreadable."""
        if not self.world.any(any(faults.unlogged for faults in self.faults.values())):
            return
        for split, faults in self.faults.items():
            for clip, reason in faults.news(self.world).items():
                told = {"split": split, "clip": clip, "reason": reason}
                self.log.write({"step": self.progress.step, "unreadable": told})

    def log_loss(self) -> None:
        """Write the mean loss since the last line."""
        progress = self.progress
        counted = progress.step - progress.logged - progress.lost
        if counted:
            mean = progress.loss / counted
            self.log.write(
                {"step": progress.step, "epoch": progress.epoch, "loss": mean, "lr": self.learning_rate()}
            )
        progress.loss, progress.lost, progress.logged = 0.0, 0, progress.step

    def finish_epoch(self) -> None:
        """Validate, keep the model if it is to be kept, and save."""
        self.log_loss()
        progress, recipe = self.progress, self.recipe
        if self.averaged is not None and self.averaged.n_averaged < self.late_epochs:
            self.averaged.update_parameters(self.model)
        self.profiler.part(VALIDATION)
        batches = map(self.embedded, self.heeding(self.all_of(self.val_set, "val")))
        parts = predict_parts(self.candidate, batches, self.device, self.regions_of, instances=False)
        collected = self.world.collect(parts)
        self.log_faults()
        thresholds, val, classes = self.world.once(lambda: self.judged(join(collected)))
        self.profiler.part(BOOKKEEPING)
        self.log.write({"step": progress.step, "epoch": progress.epoch, "val": {**val, "per_class": classes}})
        progress.epoch, progress.position = progress.epoch + 1, 0
        tqdm.write(
            f"epoch {progress.epoch}/{recipe.epochs}: validation loss {val['loss']:.3f}, "
            f"micro-F1 {val['micro_f1']:.3f}, mAP {val['map']:.3f}"
        )
        progress.stale += 1
        better = (val["micro_f1"], val["map"]) > progress.best
        if better:
            progress.best, progress.stale = (val["micro_f1"], val["map"]), 0
        if better or recipe.keep == "last":
            self.save_best(thresholds, val)
        self.save()

    def judged(
        self, predictions: Predictions
    ) -> tuple[dict[ThresholdRule, Thresholds], dict[str, float], dict[str, dict[str, float]]]:
        """Thresholds by rule, and with those of the options figures and figures per class on validation."""
        thresholds = {rule: choose_thresholds(predictions, rule) for rule in THRESHOLD_RULES}
        chosen = thresholds[self.options.thresholds].scores
        figures = classification(predictions.scores, predictions.labels, chosen, self.classes)
        val = {"loss": predictions.loss, "micro_f1": figures["micro"]["f1"], "map": figures["map"]}
        return thresholds, val, per_class(figures, predictions)

    def all_of(self, clips: Dataset[Sample], split: str) -> Iterator[Batch]:
        """This rank's share of the batches of a whole split, in its order."""
        order = range(len(clips))  # type: ignore[arg-type]
        batches = in_batches(order, self.recipe.batch_size, self.world.rank, self.world.size)
        return load_batches(clips, batches, self.options.workers, self.faults[split])

    def save(self) -> None:
        """Write all that ``restore`` needs; all ranks bring their random states."""
        states = self.world.gather(checkpoint.random_states(self.device))
        state = {
            "config": self.config,
            "model": self.model.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "random": states,
            "launch": self.world.launch,
            "unreadable": {split: faults.reasons for split, faults in self.faults.items()},
        }
        last, previous = (self.options.out / name for name in (LAST, PREVIOUS))
        self.world.once(lambda: checkpoint.save(last, state, previous))

    def save_best(self, thresholds: Mapping[ThresholdRule, Thresholds], val: dict[str, float]) -> None:
        """Write the model with what is needed to use it."""
        if not self.world.main:
            return
        checkpoint.save(
            self.options.out / BEST,
            {
                "config": self.config,
                "model": self.candidate.state_dict(),
                "classes": self.classes,
                "thresholds": {rule: values.state() for rule, values in thresholds.items()},
                "epoch": self.progress.epoch,
                "step": self.progress.step,
                "val": val,
            },
        )

    def restore(self) -> None:
        """Go back to the last checkpoint that is whole; exactly, if as many ranks wrote it as read it."""
        last, previous = (self.options.out / name for name in (LAST, PREVIOUS))
        keys = ("config", "model", "averaged", "optimizer", "progress", "random", "unreadable")
        state, note = self.world.once(lambda: checkpoint.load_latest(last, previous, "cpu", keys))
        if note is not None:
            tqdm.write(note)
        before, now = dict(flat(state["config"])), dict(flat(self.config))
        changed = [name for name in now if name != "data" and now[name] != before.get(name)]
        if changed:
            raise InputError(
                f"{self.options.out}: was started with other options or data ({', '.join(changed)} differ); "
                "repeat the command that started it, or choose another --out"
            )
        checkpoint.fill(self.model, state["model"], self.options.out / LAST)
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        for split, reasons in state["unreadable"].items():
            self.faults[split].reasons = reasons
        states = state["random"]
        if len(states) == self.world.size:
            checkpoint.restore_random_states(states[self.world.rank], self.device)
        else:
            self.world.seed(self.options.seed, self.progress.step)

    def check_ranks(self) -> None:
        """Make sure that all ranks train the same model on the same clips.

        Raises:
            InputError: One has other options or data.
        """
        own = dict(flat(self.config))
        first = self.world.once(lambda: own)
        differing = [name for name in own if own[name] != first[name]]
        if differing:
            raise InputError(
                f"rank {self.world.rank}: has other options or data than rank 0 ({', '.join(differing)} "
                "differ); start all ranks by the same command, on the same data"
            )


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


def per_class(figures: Mapping[str, Any], predictions: Predictions) -> dict[str, dict[str, float]]:
    """F1, average precision and loss of every class on validation, for the log."""
    return {
        name: {"f1": row["f1"], "ap": row["ap"], "loss": float(loss)}
        for (name, row), loss in zip(figures["per_class"].items(), predictions.class_losses, strict=True)
    }
