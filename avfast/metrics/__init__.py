"""How good scores are: classification of clips, and localisation in picture and sound.

Scores and labels are NumPy arrays; N clips, C classes. A ratio whose denominator is zero is 0, never NaN.
"""

from avfast.metrics.bootstrap import bagged, paired_bootstrap
from avfast.metrics.classification import (
    BoolArray,
    FloatArray,
    average_precision,
    best_threshold,
    class_thresholds,
    classification,
    d_prime,
    f1_precision_recall,
    micro_f1,
    precision_recall,
    ratio,
    roc_auc,
)
from avfast.metrics.localization import (
    AnnotatedBox,
    Event,
    Regions,
    audio_localization,
    iou,
    region_localization,
)

__all__ = [
    "AnnotatedBox",
    "BoolArray",
    "Event",
    "FloatArray",
    "Regions",
    "audio_localization",
    "average_precision",
    "bagged",
    "best_threshold",
    "class_thresholds",
    "classification",
    "d_prime",
    "f1_precision_recall",
    "iou",
    "micro_f1",
    "paired_bootstrap",
    "precision_recall",
    "ratio",
    "region_localization",
    "roc_auc",
]
