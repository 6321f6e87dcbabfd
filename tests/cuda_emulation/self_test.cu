// Kernels that are right, and kernels with one fault each, to test the emulation itself.
#include "launch.cuh"

namespace {

// Sums values[blockDim.x] by warp shuffles, then over warps by an atomic.
__global__ void sum_kernel(int* sum, const int* values) {
  int value = values[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(avfast::kFullWarp, value, step);
  for (int step = 16; step > 0; step /= 2) value = max(value, __shfl_down_sync(avfast::kFullWarp, value, step));
  if (threadIdx.x % 32 == 0) atomicAdd(sum, value);
}

// Reverses values[blockDim.x] through shared memory; without the barrier the result depends on the schedule.
template <bool kBarrier>
__global__ void reverse_kernel(int* values) {
  int* shared = reinterpret_cast<int*>(avfast::shared_memory());
  shared[threadIdx.x] = values[threadIdx.x];
  if (kBarrier) __syncthreads();
  values[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x % 2 == 0) __syncthreads();
}

__global__ void divergent_warp_kernel() {
  if (threadIdx.x == 3) return;
  __syncwarp();
}

__global__ void shared_overrun_kernel() { avfast::shared_memory()[blockDim.x + threadIdx.x] = 1; }

}  // namespace

// Runs the kernel named by `which` on one block of 64 threads; null or what went wrong.
extern "C" const char* self_test(const char* which, int* result, int* values) {
  static std::string error;
  const std::string name = which;
  try {
    const auto run = [&](size_t shared_bytes, auto kernel, auto... args) {
      avfast::launch(which, kernel, dim3(1), dim3(64), shared_bytes, nullptr, args...);
    };
    if (name == "sum") run(0, sum_kernel, result, values);
    if (name == "reverse") run(256, reverse_kernel<true>, values);
    if (name == "race") run(256, reverse_kernel<false>, values);
    if (name == "divergent barrier") run(0, divergent_barrier_kernel);
    if (name == "divergent warp") run(0, divergent_warp_kernel);
    if (name == "shared overrun") run(64, shared_overrun_kernel);
    return nullptr;
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
}
