// Which instruction set's kernels run: the widest that this build has and this machine understands.
#include "cpu/half.h"
#include "cpu/simd/kernels.h"

namespace avfast {

const char* isa_name(Isa isa) { return isa == Isa::kAvx2 ? "avx2" : "baseline"; }

bool isa_available(Isa isa) {
#ifdef AVFAST_X86
  if (isa == Isa::kAvx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return isa == Isa::kBaseline;
}

Isa& active_isa() {
  static Isa isa = isa_available(Isa::kAvx2) ? Isa::kAvx2 : Isa::kBaseline;
  return isa;
}

template <typename T>
const RoiPoolKernels<T>& roi_pool_kernels() {
#ifdef AVFAST_X86
  if (active_isa() == Isa::kAvx2) return *avx2::roi_pool_table<T>();
#endif
  return *baseline::roi_pool_table<T>();
}

template <typename T, typename A>
const MilKernels<T, A>& mil_kernels() {
#ifdef AVFAST_X86
  if (active_isa() == Isa::kAvx2) return *avx2::mil_table<T, A>();
#endif
  return *baseline::mil_table<T, A>();
}

const EdgeBoxesKernels& edge_boxes_kernels() {
#ifdef AVFAST_X86
  if (active_isa() == Isa::kAvx2) return *avx2::edge_boxes_table();
#endif
  return *baseline::edge_boxes_table();
}

template const RoiPoolKernels<double>& roi_pool_kernels<double>();
template const RoiPoolKernels<float>& roi_pool_kernels<float>();
template const RoiPoolKernels<Half>& roi_pool_kernels<Half>();
template const RoiPoolKernels<BFloat16>& roi_pool_kernels<BFloat16>();
template const MilKernels<double, double>& mil_kernels<double, double>();
template const MilKernels<float, float>& mil_kernels<float, float>();
template const MilKernels<Half, float>& mil_kernels<Half, float>();
template const MilKernels<BFloat16, float>& mil_kernels<BFloat16, float>();

}  // namespace avfast
