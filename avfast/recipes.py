"""Recipes: how a model is optimised, and which recipe suits which model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from avfast.models import ModelConfig

Schedule = Literal["constant", "cosine"]
Precision = Literal["float32", "bfloat16"]
Keep = Literal["best", "last"]


@dataclass(frozen=True)
class Recipe:
    """How a model is optimised, by AdamW."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    schedule: Schedule
    warmup: int = 0
    """Steps over which the learning rate rises from zero."""
    clip_grad: float = 0.0
    """Largest norm of a step's gradient; 0 for no limit."""
    average: int = 0
    """How many of the last epochs' weights are averaged; 0 or 1 for no averaging."""
    patience: int = 0
    """Epochs without a better validation score after which training stops; 0 for never."""
    keep: Keep = "best"
    """Which epoch's model is kept: the best on validation, or the last."""
    balanced: bool = False
    """Whether clips are drawn class by class in turn, so that rare classes come as often as common ones."""
    class_weights: bool = False
    """Whether a class's positives and negatives weigh the same in the loss."""
    flip: bool = False
    """Whether half of the clips are mirrored in training."""
    mixup: float = 0.0
    """Share of clips that are joined with another clip in training."""
    precision: Precision = "float32"
    """bfloat16 runs the networks in mixed precision."""
    compile: bool = False
    """Whether torch.compile generates code for the model, which changes rounding and what dropout draws."""

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of the step that follows ``step`` of ``steps`` steps."""
        rate = self.lr if self.schedule == "constant" else cosine(self.lr, step, steps)
        return rate * min(1.0, (step + 1) / (self.warmup + 1))


def cosine(lr: float, step: int, steps: int) -> float:
    """The rate after ``step`` of ``steps`` steps, from ``lr`` down to 0 (Loshchilov and Hutter 2017)."""
    return lr * (1 + math.cos(math.pi * step / steps)) / 2


FROM_SCRATCH = Recipe(epochs=12, batch_size=16, lr=2e-3, weight_decay=1e-4, schedule="cosine")
FEW_CLIPS = Recipe(
    # A handful of validation clips cannot tell epochs apart: the mean of the late ones is kept.
    epochs=20,
    batch_size=16,
    lr=1e-3,
    weight_decay=1e-4,
    schedule="cosine",
    average=5,
    keep="last",
)
PAPER = Recipe(epochs=12, batch_size=24, lr=1e-5, weight_decay=0.0, schedule="constant")
CVSSP = Recipe(
    epochs=30, batch_size=44, lr=1e-3, weight_decay=0.0, schedule="constant", average=10, balanced=True
)

RECIPES = {
    "toy": FROM_SCRATCH,
    "efficientnet-lite0": FEW_CLIPS,
    "alexnet": PAPER,
    "vgg16": PAPER,
    "features": FEW_CLIPS,
}
"""By visual backbone."""

CRNN_RECIPES = {
    "toy": replace(FROM_SCRATCH, epochs=15, average=5, balanced=True),
    "efficientnet-lite0": replace(FEW_CLIPS, epochs=40, lr=2e-3, average=10, balanced=True),
}
"""Of the gated CRNN where clips are few, which need more and smaller steps than published; by the visual
backbone that its rivals use."""


def default_recipe(config: ModelConfig) -> Recipe:
    """The recipe that suits a model."""
    if config.system in ("gated-crnn", "cvssp-fusion"):
        return CRNN_RECIPES.get(config.backbone, CVSSP)
    return RECIPES[config.backbone]
