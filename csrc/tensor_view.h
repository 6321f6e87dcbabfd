// A tensor as the kernels see it: pointer, dtype, device, shape, strides and name, with the checks launchers share.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace avfast {

enum class Dtype : uint8_t { kFloat64, kFloat32, kFloat16, kBFloat16, kInt64, kInt32, kUInt16, kUInt8 };
enum class DeviceType : uint8_t { kCPU, kCUDA };

// Wrong types and devices are the caller's TypeError, wrong values and shapes its ValueError.
struct TypeError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};
struct ValueError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

inline const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return "float64";
    case Dtype::kFloat32:
      return "float32";
    case Dtype::kFloat16:
      return "float16";
    case Dtype::kBFloat16:
      return "bfloat16";
    case Dtype::kInt64:
      return "int64";
    case Dtype::kInt32:
      return "int32";
    case Dtype::kUInt16:
      return "uint16";
    case Dtype::kUInt8:
      return "uint8";
  }
  return "unknown";
}

struct Device {
  DeviceType type;
  int32_t index;

  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
  bool operator!=(const Device& other) const { return !(*this == other); }
  std::string to_string() const { return type == DeviceType::kCPU ? "cpu" : "cuda:" + std::to_string(index); }
};

struct TensorView {
  static constexpr int kMaxDims = 8;

  void* data;
  Dtype dtype;
  Device device;
  int ndim;
  int64_t shape[kMaxDims];
  int64_t strides[kMaxDims];  // in elements
  const char* name;           // of the argument, for messages

  template <typename T>
  T* ptr() const {
    return static_cast<T*>(data);
  }

  int64_t numel() const {
    int64_t count = 1;
    for (int d = 0; d < ndim; ++d) count *= shape[d];
    return count;
  }

  // Dense in the order of dimensions; strides of dimensions of size one do not matter.
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int d = ndim - 1; d >= 0; --d) {
      if (shape[d] != 1 && strides[d] != expected) return numel() == 0;
      expected *= shape[d];
    }
    return true;
  }

  // A dense [N, C, H, W] whose memory order is N, H, W, C.
  bool is_channels_last() const {
    if (ndim != 4) return false;
    int64_t expected = 1;
    for (int d : {1, 3, 2, 0}) {
      if (shape[d] != 1 && strides[d] != expected) return numel() == 0;
      expected *= shape[d];
    }
    return true;
  }

  std::string shape_string() const {
    std::ostringstream out;
    out << '[';
    for (int d = 0; d < ndim; ++d) out << (d ? ", " : "") << shape[d];
    out << ']';
    return out.str();
  }
};

// --- checks: each names the argument, what was expected and what came --------------------------------------

inline void check_ndim(const TensorView& x, int ndim, const char* layout) {
  if (x.ndim != ndim)
    throw ValueError(std::string(x.name) + ": expected shape " + layout + ", got " + x.shape_string());
}

inline void check_shape(const TensorView& x, std::initializer_list<int64_t> shape, const char* layout) {
  check_ndim(x, static_cast<int>(shape.size()), layout);
  int d = 0;
  for (int64_t size : shape) {
    if (x.shape[d++] != size) {
      std::ostringstream out;
      out << x.name << ": expected shape " << layout << " = [";
      int i = 0;
      for (int64_t s : shape) out << (i++ ? ", " : "") << s;
      out << "], got " << x.shape_string();
      throw ValueError(out.str());
    }
  }
}

inline void check_dtype(const TensorView& x, std::initializer_list<Dtype> allowed) {
  std::string names;
  for (Dtype dtype : allowed) {
    if (x.dtype == dtype) return;
    names += (names.empty() ? "" : ", ") + std::string(dtype_name(dtype));
  }
  throw TypeError(std::string(x.name) + ": expected dtype " + names + ", got " + dtype_name(x.dtype));
}

inline void check_same_dtype(const TensorView& x, const TensorView& as) {
  if (x.dtype != as.dtype)
    throw TypeError(std::string(x.name) + ": expected dtype " + dtype_name(as.dtype) + " as " + as.name + ", got " +
                    dtype_name(x.dtype));
}

inline void check_same_device(const TensorView& x, const TensorView& as) {
  if (x.device != as.device)
    throw TypeError(std::string(x.name) + ": expected device " + as.device.to_string() + " as " + as.name + ", got " +
                    x.device.to_string());
}

inline void check_contiguous(const TensorView& x) {
  if (!x.is_contiguous()) throw ValueError(std::string(x.name) + ": expected a contiguous tensor");
}

}  // namespace avfast
