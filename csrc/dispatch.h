// From a run-time dtype to a template argument.
#pragma once

#include <string>

#include "tensor_view.h"

namespace avfast {

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls f(TypeTag<T>{}) for the float or double behind `x`.
template <typename F>
void dispatch_float(const TensorView& x, F&& f) {
  switch (x.dtype) {
    case Dtype::kFloat64:
      return f(TypeTag<double>{});
    case Dtype::kFloat32:
      return f(TypeTag<float>{});
    default:
      throw TypeError(std::string(x.name) + ": expected dtype float32 or float64, got " + dtype_name(x.dtype));
  }
}

// Calls f(TypeTag<T>{}) for the float64, float32, float16 or bfloat16 behind `x`; the device names the last two.
template <typename Half, typename BFloat16, typename F>
void dispatch_float_or_half(const TensorView& x, F&& f) {
  switch (x.dtype) {
    case Dtype::kFloat64:
      return f(TypeTag<double>{});
    case Dtype::kFloat32:
      return f(TypeTag<float>{});
    case Dtype::kFloat16:
      return f(TypeTag<Half>{});
    case Dtype::kBFloat16:
      return f(TypeTag<BFloat16>{});
    default:
      throw TypeError(std::string(x.name) + ": expected dtype float64, float32, float16 or bfloat16, got " +
                      dtype_name(x.dtype));
  }
}

}  // namespace avfast
