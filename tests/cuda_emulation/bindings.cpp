// The launchers and the emulated device behind a C interface, for ctypes; each call returns null or what went wrong.
#include <exception>
#include <string>

#include "mil_aggregate.h"
#include "roi_pool.h"
#include "scheduler.h"

namespace {

std::string error_text;

template <typename F>
const char* guarded(F&& call) {
  try {
    call();
    return nullptr;
  } catch (const std::exception& error) {
    error_text = error.what();
    return error_text.c_str();
  }
}

}  // namespace

using View = avfast::TensorView;

extern "C" {

void configure(int multiprocessors, int shared_bytes, uint64_t schedule) {
  emulation::device() = {0, multiprocessors, shared_bytes, schedule};
}

const char* roi_pool_forward(const View* output, const View* winner, const View* input, const View* boxes,
                             double spatial_scale) {
  return guarded([&] { avfast::roi_pool_forward_cuda(*output, *winner, *input, *boxes, spatial_scale, nullptr); });
}

const char* roi_pool_backward(const View* grad_input, const View* grad_output, const View* winner, const View* boxes,
                              double spatial_scale) {
  return guarded(
      [&] { avfast::roi_pool_backward_cuda(*grad_input, *grad_output, *winner, *boxes, spatial_scale, nullptr); });
}

const char* mil_aggregate_forward(const View* output, const View* peak, const View* total, const View* scores,
                                  const View* logits, const View* offsets) {
  return guarded(
      [&] { avfast::mil_aggregate_forward_cuda(*output, *peak, *total, *scores, *logits, *offsets, nullptr); });
}

const char* mil_aggregate_backward(const View* grad_scores, const View* grad_logits, const View* grad_output,
                                   const View* scores, const View* logits, const View* output, const View* peak,
                                   const View* total, const View* offsets) {
  return guarded([&] {
    avfast::mil_aggregate_backward_cuda(*grad_scores, *grad_logits, *grad_output, *scores, *logits, *output, *peak,
                                        *total, *offsets, nullptr);
  });
}

const char* mil_logsumexp_forward(const View* output, const View* peak, const View* total, const View* scores,
                                  const View* offsets, double r) {
  return guarded([&] { avfast::mil_logsumexp_forward_cuda(*output, *peak, *total, *scores, *offsets, r, nullptr); });
}

const char* mil_logsumexp_backward(const View* grad_scores, const View* grad_output, const View* scores,
                                   const View* peak, const View* total, const View* offsets, double r) {
  return guarded([&] {
    avfast::mil_logsumexp_backward_cuda(*grad_scores, *grad_output, *scores, *peak, *total, *offsets, r, nullptr);
  });
}

}  // extern "C"
