// The part of the CUDA runtime and device language that the kernels use, on the CPU: for tests only.
//
// Found before the real header, it lets the unchanged .cu sources compile as C++. See scheduler.h for how threads run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after another, so one copy serves them all

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// --- built-in variables: those of the thread that runs now ---------------------------------------------------------

inline const emulation::Index& threadIdx = emulation::here.thread;
inline const emulation::Index& blockIdx = emulation::here.block;
inline const emulation::Index& blockDim = emulation::here.block_size;
inline const emulation::Index& gridDim = emulation::here.grid_size;

inline void* emulated_shared_memory() { return emulation::shared_memory(); }

// --- barriers and warps --------------------------------------------------------------------------------------------
// The line tells whether all threads wait at the same call.

inline void __syncthreads(int line = __builtin_LINE()) { emulation::block_barrier(line); }

inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  emulation::warp_exchange(mask, 0, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  const emulation::WarpValues values = emulation::warp_exchange(mask, predicate != 0, line);
  unsigned ballot = 0;
  for (int lane = 0; lane < emulation::kWarpSize; ++lane)
    if ((mask >> lane & 1) != 0 && values[lane] != 0) ballot |= 1u << lane;
  return ballot;
}

namespace emulation {
template <typename T>
T shuffle(unsigned mask, T value, int source, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const WarpValues values = warp_exchange(mask, bits, line);
  if (source < 0 || source >= kWarpSize) return value;
  std::memcpy(&value, &values[source], sizeof(T));
  return value;
}
}  // namespace emulation

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int line = __builtin_LINE()) {
  return emulation::shuffle(mask, value, emulation::lane_index() + static_cast<int>(delta), line);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int line = __builtin_LINE()) {
  return emulation::shuffle(mask, value, emulation::lane_index() ^ lanes, line);
}

inline int __ffs(int x) { return __builtin_ffs(x); }

template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}

// --- runtime -------------------------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? emulation::failure() : error == cudaSuccess ? "no error" : "invalid value";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline cudaError_t cudaGetDevice(int* device) {
  *device = emulation::device().current;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
  emulation::device().current = device;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const emulation::Device& device = emulation::device();
  *value = attribute == cudaDevAttrMultiProcessorCount ? device.multiprocessors : device.shared_bytes;
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return value <= emulation::device().shared_bytes ? cudaSuccess : cudaErrorInvalidValue;
}

// Runs the whole grid before it returns.
template <typename... Params>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Params... args) {
  const auto index = [](const dim3& d) { return emulation::Index{d.x, d.y, d.z}; };
  const emulation::Launch launch = {index(config->gridDim), index(config->blockDim), config->dynamicSmemBytes};
  return emulation::run(launch, [&] { kernel(args...); }) ? cudaSuccess : cudaErrorLaunchFailure;
}
