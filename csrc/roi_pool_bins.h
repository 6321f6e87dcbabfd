// The bins of one box on the feature map: the arithmetic that host and device share, bit for bit torchvision's.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define AVFAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define AVFAST_HOST_DEVICE inline
#endif

namespace avfast {

// Cells [begin, end) of one axis; empty where end <= begin.
struct BinRange {
  int32_t begin;
  int32_t end;
};

// A box along one axis of the map: `pooled` bins of `bin_size` cells each, the first at cell `start`.
template <typename T>
struct RoiAxis {
  int64_t start;
  T bin_size;
};

// The nearest cell, halves away from zero. Cells beyond +-2^30 lie outside any map, so they are clamped there and an
// infinite coordinate is a very far one; without the clamp the conversion would be undefined behaviour.
template <typename T>
AVFAST_HOST_DEVICE int64_t nearest_cell(T coordinate, T spatial_scale) {
  constexpr T kFar = T(1 << 30);
  const T cell = std::round(coordinate * spatial_scale);
  return static_cast<int64_t>(cell < -kFar ? -kFar : cell > kFar ? kFar : cell);
}

// `low` and `high` are the box's coordinates; both end cells belong to it, and a malformed box is one cell wide.
template <typename T>
AVFAST_HOST_DEVICE RoiAxis<T> roi_axis(T low, T high, T spatial_scale, int64_t pooled) {
  const int64_t start = nearest_cell(low, spatial_scale);
  const int64_t cells = nearest_cell(high, spatial_scale) - start + 1;
  return {start, static_cast<T>(cells > 1 ? cells : 1) / static_cast<T>(pooled)};
}

// Bin `i` of the axis, clipped to a map of `size` cells.
template <typename T>
AVFAST_HOST_DEVICE BinRange roi_bin(const RoiAxis<T>& axis, int64_t i, int64_t size) {
  const auto clip = [size](int64_t cell) { return static_cast<int32_t>(cell < 0 ? 0 : cell > size ? size : cell); };
  return {clip(axis.start + static_cast<int64_t>(std::floor(static_cast<T>(i) * axis.bin_size))),
          clip(axis.start + static_cast<int64_t>(std::ceil(static_cast<T>(i + 1) * axis.bin_size)))};
}

// False for a NaN anywhere in the box [5] and for a batch index (truncated, as torchvision does) outside [0, batch).
template <typename T>
AVFAST_HOST_DEVICE bool roi_is_valid(const T* box, int64_t batch) {
  return box[0] > T(-1) && box[0] < static_cast<T>(batch) && box[1] == box[1] && box[2] == box[2] && box[3] == box[3] &&
         box[4] == box[4];
}

}  // namespace avfast
