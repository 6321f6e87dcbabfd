// Our declaration of the DLPack 1.x structs that the native border reads, pinned by static_asserts.
//
// Written from the published ABI (github.com/dmlc/dlpack, version 1.2) so that building needs no torch headers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace avfast::dlpack {

constexpr uint32_t kMajorVersion = 1;
constexpr const char* kExchangeApiCapsule = "dlpack_exchange_api";

enum DeviceType : int32_t { kCPU = 1, kCUDA = 2 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

struct Version {
  uint32_t major;
  uint32_t minor;
};

struct Device {
  int32_t type;
  int32_t index;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ExchangeApiHeader {
  Version version;
  ExchangeApiHeader* previous;
};

// Only the last two functions are called; the others hold their places.
struct ExchangeApi {
  ExchangeApiHeader header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object_no_sync;
  void* managed_tensor_to_py_object_no_sync;
  int (*dltensor_from_py_object_no_sync)(void* py_object, Tensor* out);
  int (*current_work_stream)(int32_t device_type, int32_t device_index, void** out_stream);
};

static_assert(sizeof(void*) == 8, "the layout below is that of 64-bit platforms");
static_assert(sizeof(DataType) == 4 && sizeof(Device) == 8);
static_assert(sizeof(Tensor) == 48 && offsetof(Tensor, ndim) == 16 && offsetof(Tensor, dtype) == 20);
static_assert(offsetof(Tensor, shape) == 24 && offsetof(Tensor, strides) == 32 && offsetof(Tensor, byte_offset) == 40);
static_assert(sizeof(ExchangeApiHeader) == 16 && offsetof(ExchangeApi, dltensor_from_py_object_no_sync) == 40);
static_assert(offsetof(ExchangeApi, current_work_stream) == 48 && sizeof(ExchangeApi) == 56);

}  // namespace avfast::dlpack
