// RoI max pooling on the CPU.
#include "roi_pool.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "dispatch.h"
#include "roi_pool_bins.h"

namespace avfast {
namespace {

template <typename F>
void dispatch_winner(const TensorView& winner, F&& f) {
  switch (winner.dtype) {
    case Dtype::kUInt8:
      return f(TypeTag<uint8_t>{});
    case Dtype::kUInt16:
      return f(TypeTag<uint16_t>{});
    default:
      return f(TypeTag<int32_t>{});
  }
}

template <typename B>
void check_boxes(const B* boxes, int64_t count, int64_t batch) {
  for (int64_t k = 0; k < count; ++k) {
    if (roi_is_valid(boxes + 5 * k, batch)) continue;
    std::ostringstream out;
    out << "boxes[" << k << "]: expected a batch index in [0, " << batch << ") and no NaN, got [";
    for (int i = 0; i < 5; ++i) out << (i ? ", " : "") << boxes[5 * k + i];
    out << ']';
    throw ValueError(out.str());
  }
}

// The greatest value of a bin; NaN only where all of it is, then the first cell wins.
template <typename T>
int64_t bin_winner(const T* plane, BinRange rows, BinRange columns, int64_t stride_h, int64_t stride_w, int64_t width) {
  int64_t winner = rows.begin * width + columns.begin;
  T best = plane[rows.begin * stride_h + columns.begin * stride_w];
  for (int64_t h = rows.begin; h < rows.end; ++h)
    for (int64_t w = columns.begin; w < columns.end; ++w) {
      const T value = plane[h * stride_h + w * stride_w];
      if (value > best || (best != best && value == value)) {
        best = value;
        winner = h * width + w;
      }
    }
  return winner;
}

template <typename T, typename B, typename W>
void forward(const TensorView& output, const TensorView& winner, const TensorView& input, const TensorView& boxes,
             double spatial_scale) {
  const int64_t channels = input.shape[1], height = input.shape[2], width = input.shape[3];
  const int64_t count = boxes.shape[0], pooled_h = output.shape[2], pooled_w = output.shape[3];
  const B* box_data = boxes.ptr<B>();
  check_boxes(box_data, count, input.shape[0]);
  const bool with_winner = winner.numel() != 0;
  const int64_t* is = input.strides;
  const int64_t* os = output.strides;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t k = 0; k < count; ++k)
    for (int64_t c = 0; c < channels; ++c) {
      const B* box = box_data + 5 * k;
      const T* plane = input.ptr<T>() + static_cast<int64_t>(box[0]) * is[0] + c * is[1];
      const auto axis_h = roi_axis(box[2], box[4], static_cast<B>(spatial_scale), pooled_h);
      const auto axis_w = roi_axis(box[1], box[3], static_cast<B>(spatial_scale), pooled_w);
      for (int64_t ph = 0; ph < pooled_h; ++ph)
        for (int64_t pw = 0; pw < pooled_w; ++pw) {
          const BinRange rows = roi_bin(axis_h, ph, height), columns = roi_bin(axis_w, pw, width);
          const bool empty = rows.end <= rows.begin || columns.end <= columns.begin;
          const int64_t cell = empty ? -1 : bin_winner(plane, rows, columns, is[2], is[3], width);
          const int64_t at = k * os[0] + c * os[1] + ph * os[2] + pw * os[3];
          output.ptr<T>()[at] = empty ? T(0) : plane[cell / width * is[2] + cell % width * is[3]];
          if (with_winner) winner.ptr<W>()[at] = empty ? std::numeric_limits<W>::max() : static_cast<W>(cell);
        }
    }
}

template <typename T, typename B, typename W>
void backward(const TensorView& grad_input, const TensorView& grad_output, const TensorView& winner,
              const TensorView& boxes) {
  const int64_t batch = grad_input.shape[0], channels = grad_input.shape[1], width = grad_input.shape[3];
  const int64_t count = boxes.shape[0], pooled_h = grad_output.shape[2], pooled_w = grad_output.shape[3];
  const B* box_data = boxes.ptr<B>();
  check_boxes(box_data, count, batch);
  std::vector<std::vector<int64_t>> boxes_of(batch);
  for (int64_t k = 0; k < count; ++k) boxes_of[static_cast<int64_t>(box_data[5 * k])].push_back(k);
  const int64_t* is = grad_input.strides;
  const int64_t* os = grad_output.strides;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t n = 0; n < batch; ++n)
    for (int64_t c = 0; c < channels; ++c) {
      T* plane = grad_input.ptr<T>() + n * is[0] + c * is[1];
      for (int64_t h = 0; h < grad_input.shape[2]; ++h)
        for (int64_t w = 0; w < width; ++w) plane[h * is[2] + w * is[3]] = T(0);
      for (int64_t k : boxes_of[n])
        for (int64_t ph = 0; ph < pooled_h; ++ph)
          for (int64_t pw = 0; pw < pooled_w; ++pw) {
            const int64_t at = k * os[0] + c * os[1] + ph * os[2] + pw * os[3];
            const W cell = winner.ptr<W>()[at];
            if (cell == std::numeric_limits<W>::max()) continue;
            plane[cell / width * is[2] + cell % width * is[3]] += grad_output.ptr<T>()[at];
          }
    }
}

void check_layout(const TensorView& x, const TensorView& as) {
  if (!(as.is_contiguous() && x.is_contiguous()) && !(as.is_channels_last() && x.is_channels_last()))
    throw ValueError(std::string(x.name) + ": expected a contiguous or channels_last tensor, and the same as " +
                     as.name);
}

void check_boxes_view(const TensorView& boxes, const TensorView& as) {
  check_shape(boxes, {boxes.shape[0], 5}, "[K, 5]");
  check_dtype(boxes, {Dtype::kFloat32, Dtype::kFloat64});
  check_contiguous(boxes);
  check_same_device(boxes, as);
}

void check_winner(const TensorView& winner, const TensorView& output, int64_t height, int64_t width) {
  check_shape(winner, {output.shape[0], output.shape[1], output.shape[2], output.shape[3]}, "[K, C, PH, PW]");
  check_dtype(winner, {winner_dtype(height, width)});
  check_layout(winner, output);
  check_same_device(winner, output);
}

}  // namespace

void roi_pool_forward_cpu(const TensorView& output, const TensorView& winner, const TensorView& input,
                          const TensorView& boxes, double spatial_scale) {
  check_ndim(input, 4, "[N, C, H, W]");
  check_ndim(boxes, 2, "[K, 5]");
  check_ndim(output, 4, "[K, C, PH, PW]");
  check_boxes_view(boxes, input);
  check_shape(output, {boxes.shape[0], input.shape[1], output.shape[2], output.shape[3]}, "[K, C, PH, PW]");
  check_same_dtype(output, input);
  check_same_device(output, input);
  check_layout(input, input);
  check_layout(output, input);
  if (winner.ndim != 1) check_winner(winner, output, input.shape[2], input.shape[3]);
  dispatch_float(input, [&](auto t) {
    dispatch_float(boxes, [&](auto b) {
      dispatch_winner(winner, [&](auto w) {
        forward<typename decltype(t)::type, typename decltype(b)::type, typename decltype(w)::type>(
            output, winner, input, boxes, spatial_scale);
      });
    });
  });
}

void roi_pool_backward_cpu(const TensorView& grad_input, const TensorView& grad_output, const TensorView& winner,
                           const TensorView& boxes, double /* the winners say it all */) {
  check_ndim(grad_input, 4, "[N, C, H, W]");
  check_ndim(boxes, 2, "[K, 5]");
  check_ndim(grad_output, 4, "[K, C, PH, PW]");
  check_boxes_view(boxes, grad_input);
  check_shape(grad_output, {boxes.shape[0], grad_input.shape[1], grad_output.shape[2], grad_output.shape[3]},
              "[K, C, PH, PW]");
  check_same_dtype(grad_output, grad_input);
  check_same_device(grad_output, grad_input);
  check_layout(grad_input, grad_input);
  check_layout(grad_output, grad_input);
  check_winner(winner, grad_output, grad_input.shape[2], grad_input.shape[3]);
  dispatch_float(grad_input, [&](auto t) {
    dispatch_float(boxes, [&](auto b) {
      dispatch_winner(winner, [&](auto w) {
        backward<typename decltype(t)::type, typename decltype(b)::type, typename decltype(w)::type>(
            grad_input, grad_output, winner, boxes);
      });
    });
  });
}

}  // namespace avfast
