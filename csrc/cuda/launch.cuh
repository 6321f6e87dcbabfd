// How every launcher starts a kernel: on the tensors' device and the caller's stream, with each error named.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "tensor_view.h"

namespace avfast {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
// What a kernel may take without asking for more, on every architecture.
constexpr size_t kDefaultSharedBytes = 48 * 1024;

inline void check_cuda(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the error is ours now: the next caller must not find it again
  throw std::runtime_error(what + ": CUDA error: " + cudaGetErrorString(error));
}

// Makes the device of `x` current for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(const TensorView& x) {
    if (x.device.type != DeviceType::kCUDA)
      throw TypeError(std::string(x.name) + ": expected a CUDA tensor, got one on " + x.device.to_string());
    check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
    if (x.device.index != previous_) check_cuda(cudaSetDevice(x.device.index), "cudaSetDevice");
    changed_ = x.device.index != previous_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// An attribute of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A one-dimensional grid, the only kind used here: its first dimension reaches 2^31 - 1, the others 65,535.
inline dim3 grid_of(int64_t blocks, const char* kernel_name) {
  if (blocks > std::numeric_limits<int32_t>::max())
    throw ValueError(std::string(kernel_name) + ": the tensors are too large for one launch");
  return dim3(static_cast<unsigned>(blocks));
}

// Queues kernel(args...) on `stream`. A plain function rather than <<<>>>, so that the sources are ordinary C++.
template <typename... Params, typename... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
            const Args&... args) {
  if (shared_bytes > kDefaultSharedBytes)
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               name);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), name);
}

// The block's dynamic shared memory, 16-byte aligned.
__device__ inline unsigned char* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
#else
  return static_cast<unsigned char*>(emulated_shared_memory());  // tests/cuda_emulation
#endif
}

}  // namespace avfast
