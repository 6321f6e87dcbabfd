// Element types on the device: the accumulation type of each, conversions, and 16-byte vectors of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <limits>

namespace avfast {

// Half types accumulate and compare in float, which holds each of their values exactly.
template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <typename T>
constexpr T kLowest = std::numeric_limits<T>::lowest();
template <typename T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ inline T narrow(Accumulator<T> x) {
  return x;
}
template <>
__device__ inline __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

constexpr int kVectorBytes = 16;

// Elements in one 16-byte access.
template <typename T>
constexpr int kVectorSize = kVectorBytes / static_cast<int>(sizeof(T));

// N neighbouring elements, moved by as few accesses as their size allows.
template <typename T, int N>
struct alignas(sizeof(T) * N < kVectorBytes ? sizeof(T) * N : kVectorBytes) Vector {
  T data[N];
};

template <int N, typename T>
__device__ inline Vector<T, N> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <int N, typename T>
__device__ inline void store_vector(T* to, const Vector<T, N>& value) {
  *reinterpret_cast<Vector<T, N>*>(to) = value;
}

__host__ __device__ inline bool is_vector_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;
}

// `threads` threads, of which this is number `rank`, copy `count` elements to 16-byte aligned shared memory.
template <typename T>
__device__ void copy_to_shared(T* shared, const T* global, int32_t count, int rank, int threads) {
  constexpr int kVec = kVectorSize<T>;
  const int32_t vectors = is_vector_aligned(global) ? count / kVec : 0;
#pragma unroll 4
  for (int32_t i = rank; i < vectors; i += threads)
    store_vector<kVec>(shared + i * kVec, load_vector<kVec>(global + i * kVec));
  for (int32_t i = vectors * kVec + rank; i < count; i += threads) shared[i] = global[i];
}

}  // namespace avfast
