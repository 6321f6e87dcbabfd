// RoI max pooling (Girshick, Fast R-CNN, ICCV 2015) with torchvision's box semantics: launchers of both devices.
#pragma once

#include "tensor_view.h"

namespace avfast {

// Output first, then inputs, numbers, stream. `output` and `winner` have the memory format of `input`
// (contiguous or channels_last). `winner` holds h * W + w of each bin's maximum in the smallest unsigned type that
// holds H * W (winner_dtype below); the type's largest value marks an empty bin. An empty view skips it.
// Raises where a box is NaN or its batch index is out of range (CPU); such a box pools to zero on CUDA.
void roi_pool_forward_cpu(const TensorView& output,  // [K, C, PH, PW]
                          const TensorView& winner,  // [K, C, PH, PW] or [0]
                          const TensorView& input,   // [N, C, H, W]
                          const TensorView& boxes,   // [K, 5] batch index, x1, y1, x2, y2; float32 or float64
                          double spatial_scale);

// Gradients go to the winners. Deterministic: every element of grad_input is summed by one thread in box order.
void roi_pool_backward_cpu(const TensorView& grad_input,   // [N, C, H, W]
                           const TensorView& grad_output,  // [K, C, PH, PW]
                           const TensorView& winner,       // [K, C, PH, PW]
                           const TensorView& boxes,        // [K, 5]
                           double spatial_scale);

// The same on CUDA, queued on `stream` of input's device; never synchronises with the host.
void roi_pool_forward_cuda(const TensorView& output, const TensorView& winner, const TensorView& input,
                           const TensorView& boxes, double spatial_scale, void* stream);
void roi_pool_backward_cuda(const TensorView& grad_input, const TensorView& grad_output, const TensorView& winner,
                            const TensorView& boxes, double spatial_scale, void* stream);

// uint8 for maps of up to 255 cells (AlexNet's 13 x 13), uint16 up to 65,535, int32 beyond.
inline Dtype winner_dtype(int64_t height, int64_t width) {
  const int64_t cells = height * width;
  return cells <= 255 ? Dtype::kUInt8 : cells <= 65535 ? Dtype::kUInt16 : Dtype::kInt32;
}

}  // namespace avfast
