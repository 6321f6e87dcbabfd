// What the launchers of RoI pooling demand of their arguments, on either device.
#pragma once

#include "roi_pool.h"

namespace avfast {

inline void check_roi_pool_layout(const TensorView& x, const TensorView& as) {
  if (!(as.is_contiguous() && x.is_contiguous()) && !(as.is_channels_last() && x.is_channels_last()))
    throw ValueError(std::string(x.name) + ": expected a contiguous or channels_last tensor, and the same as " +
                     as.name);
}

// `map` is [N, C, H, W], `pooled` [K, C, PH, PW]: input and output, or their gradients. An empty view `winner` is
// accepted unless `needs_winner`.
inline void check_roi_pool(const TensorView& map, const TensorView& pooled, const TensorView& winner,
                           const TensorView& boxes, bool needs_winner) {
  check_ndim(map, 4, "[N, C, H, W]");
  check_shape(boxes, {boxes.shape[0], 5}, "[K, 5]");
  check_dtype(boxes, {Dtype::kFloat32, Dtype::kFloat64});
  check_contiguous(boxes);
  check_same_device(boxes, map);
  check_ndim(pooled, 4, "[K, C, PH, PW]");
  check_shape(pooled, {boxes.shape[0], map.shape[1], pooled.shape[2], pooled.shape[3]}, "[K, C, PH, PW]");
  if (pooled.shape[2] < 1 || pooled.shape[3] < 1)
    throw ValueError(std::string(pooled.name) + ": expected at least one bin, got " + pooled.shape_string());
  if (map.shape[2] * map.shape[3] >= INT32_MAX)
    throw ValueError(std::string(map.name) + ": expected fewer than 2^31 - 1 cells, got " + map.shape_string());
  check_same_dtype(pooled, map);
  check_same_device(pooled, map);
  check_roi_pool_layout(map, map);
  check_roi_pool_layout(pooled, map);
  if (!needs_winner && winner.ndim == 1 && winner.numel() == 0) return;
  check_shape(winner, {pooled.shape[0], pooled.shape[1], pooled.shape[2], pooled.shape[3]}, "[K, C, PH, PW]");
  check_dtype(winner, {winner_dtype(map.shape[2], map.shape[3])});
  check_same_device(winner, map);
  check_roi_pool_layout(winner, map);
}

}  // namespace avfast
