"""``avfast.train`` in double precision and without dropout, with the fault that a variable names."""

from __future__ import annotations

import os
import signal

import torch

from avfast import cli, runs, train, training
from avfast.data.batch import Batch
from avfast.errors import InputError
from avfast.models import System, build, system
from avfast.models.backbones import ToyVisual

FAULT = os.environ.get("AVFAST_TEST_FAULT")

build_single, normalise, after_step = build, ToyVisual.normalise, training.Trainer.after_step


def build_double(*arguments: object) -> System:
    return build_single(*arguments).double()


def to_double(batch: Batch, *_: object, **__: object) -> Batch:
    return batch._map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def faulty_step(trainer: training.Trainer, loss: float | None) -> None:
    """The second step is rank 1's last, unless torchrun has started it again."""
    after_step(trainer, loss)
    if trainer.world.rank == 1 and trainer.world.restarts == 0 and trainer.progress.step == 2:
        if FAULT == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if FAULT == "error":
            raise InputError("clip.mp4: unreadable on rank 1")


train.build = runs.build = build_double
Batch.to = to_double
ToyVisual.normalise = lambda self, frames: normalise(self, frames).double()
training.Trainer.after_step = faulty_step
system.PRESETS["toy"] |= {"dropout": 0.0, "spec_augment": False}

if __name__ == "__main__":
    torch.set_num_threads(1)
    cli.run(train.main, train.Options)
