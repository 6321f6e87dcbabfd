// Boxes and winners of RoI pooling as the kernels receive them, and the cells of a box's bins.
#pragma once

#include <cuda_runtime.h>

#include <limits>

#include "roi_pool_bins.h"
#include "tensor_view.h"

namespace avfast {

// The winner of an empty bin; in a narrower type it becomes that type's largest value too.
constexpr int32_t kEmptyBin = std::numeric_limits<int32_t>::max();

// The winners [K, C, PH, PW] in whichever type holds the map's cells; nowhere where `data` is null.
struct Winners {
  void* data;
  Dtype dtype;

  __host__ __device__ int32_t size() const { return dtype == Dtype::kUInt8 ? 1 : dtype == Dtype::kUInt16 ? 2 : 4; }
};

// The boxes [K, 5] and the geometry they are pooled with. Boxes of float64 are rounded to cells in float64.
struct Boxes {
  const void* data;
  bool is_double;
  double spatial_scale;
  int64_t count, images;
  int32_t height, width;
  int32_t pooled_height, pooled_width;

  __host__ __device__ int32_t bins() const { return pooled_height * pooled_width; }
  __host__ __device__ int64_t cells() const { return static_cast<int64_t>(height) * width; }
};

struct Window {
  BinRange rows, columns;

  __device__ bool empty() const { return rows.end <= rows.begin || columns.end <= columns.begin; }
};

// The image that box `k` lies in; -1 for a box with a NaN or a batch index out of range.
__device__ inline int64_t box_image(const Boxes& boxes, int64_t k) {
  const auto image = [&](const auto* box) {
    return roi_is_valid(box, boxes.images) ? static_cast<int64_t>(box[0]) : int64_t{-1};
  };
  return boxes.is_double ? image(static_cast<const double*>(boxes.data) + 5 * k)
                         : image(static_cast<const float*>(boxes.data) + 5 * k);
}

template <typename T>
__device__ BinRange box_rows(const Boxes& boxes, const T* box, int32_t first_bin, int32_t last_bin) {
  const RoiAxis<T> axis = roi_axis(box[2], box[4], static_cast<T>(boxes.spatial_scale), boxes.pooled_height);
  return {roi_bin(axis, first_bin, boxes.height).begin, roi_bin(axis, last_bin, boxes.height).end};
}

// The rows of the map that bins [first_bin, last_bin] of box `k` cover, along its height.
__device__ inline BinRange box_rows(const Boxes& boxes, int64_t k, int32_t first_bin, int32_t last_bin) {
  return boxes.is_double ? box_rows(boxes, static_cast<const double*>(boxes.data) + 5 * k, first_bin, last_bin)
                         : box_rows(boxes, static_cast<const float*>(boxes.data) + 5 * k, first_bin, last_bin);
}

template <typename T>
__device__ BinRange box_columns(const Boxes& boxes, const T* box, int32_t bin) {
  const RoiAxis<T> axis = roi_axis(box[1], box[3], static_cast<T>(boxes.spatial_scale), boxes.pooled_width);
  return roi_bin(axis, bin, boxes.width);
}

// The cells of bin `bin` (row-major) of box `k`.
__device__ inline Window bin_window(const Boxes& boxes, int64_t k, int32_t bin) {
  const int32_t ph = bin / boxes.pooled_width;
  const int32_t pw = bin % boxes.pooled_width;
  return {box_rows(boxes, k, ph, ph), boxes.is_double
                                          ? box_columns(boxes, static_cast<const double*>(boxes.data) + 5 * k, pw)
                                          : box_columns(boxes, static_cast<const float*>(boxes.data) + 5 * k, pw)};
}

}  // namespace avfast
