"""Backbones, heads and the systems made of them."""

from avfast.models import features, systems
from avfast.models.heads import Stream
from avfast.models.system import PRESETS, SYSTEMS, ModelConfig, Output, System, build

__all__ = ["PRESETS", "SYSTEMS", "ModelConfig", "Output", "Stream", "System", "build", "features", "systems"]
