"""The native operations as functions of torch tensors; needs torch alone."""

from avfast.ops.edge_boxes import edge_boxes
from avfast.ops.mil import mil_aggregate, mil_logsumexp
from avfast.ops.roi_pool import roi_pool

__all__ = ["edge_boxes", "mil_aggregate", "mil_logsumexp", "roi_pool"]
