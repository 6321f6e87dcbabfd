// Python tensor -> TensorView and its device's current stream, through DLPack's C exchange API; NumPy arrays, too.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <string>

#include "dlpack_abi.h"
#include "tensor_view.h"

namespace avfast {

// The exchange API of a Python type. It lives as long as the process, so the last one seen is kept: calls
// nearly always bring the same type. Guarded by the GIL.
inline const dlpack::ExchangeApi& exchange_api(pybind11::handle object, const char* name) {
  static PyTypeObject* last_type = nullptr;
  static const dlpack::ExchangeApi* last_api = nullptr;
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (type == last_type) return *last_api;

  namespace py = pybind11;
  py::handle type_object(reinterpret_cast<PyObject*>(type));
  py::object capsule = py::getattr(type_object, "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), dlpack::kExchangeApiCapsule))
    throw TypeError(std::string(name) + ": expected a torch.Tensor (torch >= 2.10) or a NumPy array, got " +
                    type->tp_name);
  auto* header =
      static_cast<dlpack::ExchangeApiHeader*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kExchangeApiCapsule));
  while (header != nullptr && header->version.major != dlpack::kMajorVersion) header = header->previous;
  auto* api = reinterpret_cast<const dlpack::ExchangeApi*>(header);
  if (api == nullptr || api->dltensor_from_py_object_no_sync == nullptr)
    throw TypeError(std::string(name) + ": " + type->tp_name + " offers no DLPack 1.x exchange API");
  Py_INCREF(type);  // never let another type take this address while it is cached
  Py_XDECREF(last_type);
  last_type = type;
  last_api = api;
  return *api;
}

inline Dtype dtype_from_dlpack(const dlpack::DataType& dtype, const char* name) {
  const auto is = [&](uint8_t code, int bits) { return dtype.code == code && dtype.bits == bits && dtype.lanes == 1; };
  if (is(dlpack::kFloat, 64)) return Dtype::kFloat64;
  if (is(dlpack::kFloat, 32)) return Dtype::kFloat32;
  if (is(dlpack::kFloat, 16)) return Dtype::kFloat16;
  if (is(dlpack::kBfloat, 16)) return Dtype::kBFloat16;
  if (is(dlpack::kInt, 64)) return Dtype::kInt64;
  if (is(dlpack::kInt, 32)) return Dtype::kInt32;
  if (is(dlpack::kUInt, 16)) return Dtype::kUInt16;
  if (is(dlpack::kUInt, 8)) return Dtype::kUInt8;
  throw TypeError(std::string(name) + ": dtype not supported (DLPack code " + std::to_string(dtype.code) + ", " +
                  std::to_string(dtype.bits) + " bits)");
}

inline void set_ndim(TensorView& view, int64_t ndim) {
  if (ndim > TensorView::kMaxDims)
    throw ValueError(std::string(view.name) + ": expected at most 8 dimensions, got " + std::to_string(ndim));
  view.ndim = static_cast<int>(ndim);
}

inline Dtype dtype_from_buffer(const pybind11::buffer_info& buffer, const char* name) {
  const auto is = [&](const char* codes, pybind11::ssize_t size) {
    return buffer.format.size() == 1 && std::strchr(codes, buffer.format[0]) && buffer.itemsize == size;
  };
  if (is("d", 8)) return Dtype::kFloat64;
  if (is("f", 4)) return Dtype::kFloat32;
  if (is("e", 2)) return Dtype::kFloat16;
  if (is("lq", 8)) return Dtype::kInt64;
  if (is("i", 4)) return Dtype::kInt32;
  if (is("H", 2)) return Dtype::kUInt16;
  if (is("B", 1)) return Dtype::kUInt8;
  throw TypeError(std::string(name) + ": dtype not supported (buffer format '" + buffer.format + "')");
}

// A view of a NumPy array, for callers that do without torch. NumPy marks the format of elements that are not
// aligned or not in this machine's byte order, so those are refused with the dtype.
inline TensorView array_view(pybind11::handle object, const char* name) {
  const pybind11::buffer_info buffer = pybind11::reinterpret_borrow<pybind11::buffer>(object).request();
  TensorView view{};
  view.name = name;
  view.dtype = dtype_from_buffer(buffer, name);
  view.device = {DeviceType::kCPU, 0};
  view.data = buffer.ptr;
  set_ndim(view, buffer.ndim);
  bool whole = reinterpret_cast<uintptr_t>(buffer.ptr) % buffer.itemsize == 0;
  for (int d = 0; d < view.ndim; ++d) {
    view.shape[d] = buffer.shape[d];
    view.strides[d] = buffer.strides[d] / buffer.itemsize;
    whole = whole && buffer.strides[d] % buffer.itemsize == 0;
  }
  if (buffer.readonly || !whole) throw ValueError(std::string(name) + ": expected a writable, aligned array");
  return view;
}

// A view of `object`, valid while the caller holds it.
inline TensorView tensor_view(pybind11::handle object, const char* name) {
  if (PyObject_CheckBuffer(object.ptr())) return array_view(object, name);
  const dlpack::ExchangeApi& api = exchange_api(object, name);
  dlpack::Tensor tensor{};
  if (api.dltensor_from_py_object_no_sync(object.ptr(), &tensor) != 0) throw pybind11::error_already_set();

  TensorView view{};
  view.name = name;
  view.dtype = dtype_from_dlpack(tensor.dtype, name);
  if (tensor.device.type != dlpack::kCPU && tensor.device.type != dlpack::kCUDA)
    throw TypeError(std::string(name) + ": expected a CPU or CUDA tensor, got DLPack device type " +
                    std::to_string(tensor.device.type));
  view.device = {tensor.device.type == dlpack::kCUDA ? DeviceType::kCUDA : DeviceType::kCPU, tensor.device.index};
  set_ndim(view, tensor.ndim);
  for (int d = 0; d < view.ndim; ++d) {
    view.shape[d] = tensor.shape[d];
    view.strides[d] = tensor.strides[d];
  }
  // A fake or meta tensor passes through the exchange without an error and without memory.
  if (tensor.data == nullptr && view.numel() != 0)
    throw TypeError(std::string(name) + ": the tensor has no memory (a fake or meta tensor?)");
  view.data = static_cast<char*>(tensor.data) + (tensor.data == nullptr ? 0 : tensor.byte_offset);
  return view;
}

// The stream on which the framework of `object` currently queues work for `device`; null on the CPU.
inline void* current_stream(pybind11::handle object, const Device& device) {
  if (device.type == DeviceType::kCPU) return nullptr;
  void* stream = nullptr;
  if (exchange_api(object, "stream").current_work_stream(dlpack::kCUDA, device.index, &stream) != 0)
    throw pybind11::error_already_set();
  return stream;
}

}  // namespace avfast
