// What the launchers of MIL aggregation demand of their arguments, on either device.
#pragma once

#include "mil_aggregate.h"

namespace avfast {

// The numbers of bags and of classes, from instances `x` and, where they are ragged, `offsets`.
struct BagSizes {
  int64_t count, classes;
};

inline BagSizes check_bags(const TensorView& x, const TensorView& offsets) {
  if (offsets.numel() == 0) {
    check_ndim(x, 3, "[B, P, C]");
    return {x.shape[0], x.shape[2]};
  }
  check_ndim(x, 2, "[N, C]");
  check_ndim(offsets, 1, "[B + 1]");
  check_dtype(offsets, {Dtype::kInt64});
  check_contiguous(offsets);
  check_same_device(offsets, x);
  return {offsets.shape[0] - 1, x.shape[1]};
}

inline void check_instances(const TensorView& x, const TensorView& as) {
  check_ndim(x, as.ndim, as.ndim == 3 ? "[B, P, C]" : "[N, C]");
  for (int d = 0; d < as.ndim; ++d)
    if (x.shape[d] != as.shape[d])
      throw ValueError(std::string(x.name) + ": expected shape " + as.shape_string() + " as " + as.name + ", got " +
                       x.shape_string());
  check_same_dtype(x, as);
  check_same_device(x, as);
}

inline void check_contiguous_instances(const TensorView& x, const TensorView& as) {
  check_instances(x, as);
  check_contiguous(x);
}

inline void check_bag_values(const TensorView& x, const BagSizes& bags, const TensorView& as) {
  check_shape(x, {bags.count, bags.classes}, "[B, C]");
  check_same_dtype(x, as);
  check_same_device(x, as);
}

inline void check_contiguous_bag_values(const TensorView& x, const BagSizes& bags, const TensorView& as) {
  check_bag_values(x, bags, as);
  check_contiguous(x);
}

// Statistics are in the type that sums are taken in.
inline void check_statistic(const TensorView& x, const BagSizes& bags, const TensorView& as) {
  check_shape(x, {bags.count, bags.classes}, "[B, C]");
  check_dtype(x, {as.dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32});
  check_contiguous(x);
  check_same_device(x, as);
}

}  // namespace avfast
