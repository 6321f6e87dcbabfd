"""Videos in, batches of regions and audio segments out."""

from avfast.data.batch import Batch, Sample, collate

__all__ = ["Batch", "Sample", "collate"]
