// Runs the CPU launchers of both instruction sets over hostile sizes, against naive loops; for use under sanitizers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "cpu/half.h"
#include "cpu/simd/kernels.h"
#include "edge_boxes.h"
#include "mil_aggregate.h"
#include "roi_pool.h"

using namespace avfast;

namespace {

std::mt19937 generator(1);

double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(generator); }

[[noreturn]] void fail(const char* what, double actual, double expected) {
  std::printf("FAILED %s under %s: %g, expected %g\n", what, isa_name(active_isa()), actual, expected);
  std::exit(1);
}

void expect_near(const char* what, double actual, double expected, double tolerance) {
  if (std::isnan(expected) ? !std::isnan(actual)
                           : !(std::abs(actual - expected) <= tolerance * (1 + std::abs(expected))))
    fail(what, actual, expected);
}

template <typename T>
struct Type;
template <>
struct Type<double> {
  static constexpr Dtype kDtype = Dtype::kFloat64;
  static constexpr double kTolerance = 1e-12;
  static double read(double x) { return x; }
  static double write(double x) { return x; }
};
template <>
struct Type<float> {
  static constexpr Dtype kDtype = Dtype::kFloat32;
  static constexpr double kTolerance = 1e-5;
  static double read(float x) { return x; }
  static float write(double x) { return static_cast<float>(x); }
};
template <>
struct Type<Half> {
  static constexpr Dtype kDtype = Dtype::kFloat16;
  static constexpr double kTolerance = 4e-3;
  static double read(Half x) { return to_float(x); }
  static Half write(double x) { return to_half(static_cast<float>(x)); }
};
template <>
struct Type<BFloat16> {
  static constexpr Dtype kDtype = Dtype::kBFloat16;
  static constexpr double kTolerance = 3e-2;
  static double read(BFloat16 x) { return to_float(x); }
  static BFloat16 write(double x) { return to_bfloat16(static_cast<float>(x)); }
};

// A view of exactly `values`' memory, so that one element past it is an error the sanitizer sees.
TensorView view(void* data, Dtype dtype, std::vector<int64_t> shape, const char* name, bool channels_last = false) {
  TensorView x{};
  x.data = data;
  x.dtype = dtype;
  x.ndim = static_cast<int>(shape.size());
  x.name = name;
  int64_t stride = 1;
  for (int d = x.ndim - 1; d >= 0; --d) {
    x.shape[d] = shape[d];
    x.strides[d] = stride;
    stride *= shape[d];
  }
  if (channels_last) {
    x.strides[1] = 1;
    x.strides[3] = shape[1];
    x.strides[2] = shape[1] * shape[3];
    x.strides[0] = shape[1] * shape[3] * shape[2];
  }
  return x;
}

template <typename T>
std::vector<T> random_values(int64_t count) {
  std::vector<T> values(count);
  for (T& value : values) value = Type<T>::write(uniform(-4, 4));
  return values;
}

template <typename T>
void check_roi_pool(int64_t channels, int64_t height, int64_t width, int64_t ph, int64_t pw, bool last, double far) {
  const int64_t batch = 2, count = 5, out = count * channels * ph * pw;
  auto input = random_values<T>(batch * channels * height * width);
  std::vector<float> boxes;
  for (int64_t k = 0; k < count; ++k) {
    boxes.push_back(static_cast<float>(k % batch));
    for (int i = 0; i < 4; ++i) boxes.push_back(static_cast<float>(uniform(-far, far + static_cast<double>(width))));
  }
  boxes[1] = -std::numeric_limits<float>::infinity();
  boxes[4] = std::numeric_limits<float>::max();
  std::vector<T> output(out), grad_input(input.size());
  auto grad_output = random_values<T>(out);
  std::vector<int32_t> winner_memory(out);
  const Dtype type = winner_dtype(height, width);
  const auto in = view(input.data(), Type<T>::kDtype, {batch, channels, height, width}, "input", last);
  const auto box = view(boxes.data(), Dtype::kFloat32, {count, 5}, "boxes");
  const auto o = view(output.data(), Type<T>::kDtype, {count, channels, ph, pw}, "output", last);
  // Placed against the end of its memory.
  const int64_t bytes = type == Dtype::kUInt8 ? 1 : type == Dtype::kUInt16 ? 2 : 4;
  char* winner_data = reinterpret_cast<char*>(winner_memory.data() + out) - out * bytes;
  const auto w = view(winner_data, type, {count, channels, ph, pw}, "winner", last);
  roi_pool_forward_cpu(o, w, in, box, 0.5);

  std::vector<double> grads(input.size());
  for (int64_t k = 0; k < count; ++k)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < ph * pw; ++i) {
        const int64_t at = k * o.strides[0] + c * o.strides[1] + i / pw * o.strides[2] + i % pw * o.strides[3];
        const int64_t cell = bytes == 1   ? reinterpret_cast<uint8_t*>(winner_data)[at]
                             : bytes == 2 ? reinterpret_cast<uint16_t*>(winner_data)[at]
                                          : reinterpret_cast<int32_t*>(winner_data)[at];
        const bool empty = cell == (bytes == 1 ? 0xff : bytes == 2 ? 0xffff : 0x7fffffff);
        if (!empty && cell >= height * width) fail("winner", static_cast<double>(cell), 0);
        const int64_t from =
            k % batch * in.strides[0] + c * in.strides[1] + cell / width * in.strides[2] + cell % width * in.strides[3];
        expect_near("roi_pool", Type<T>::read(output[at]), empty ? 0 : Type<T>::read(input[from]), 0);
        if (!empty) grads[from] += Type<T>::read(grad_output[at]);
      }
  const auto g = view(grad_output.data(), Type<T>::kDtype, {count, channels, ph, pw}, "grad_output", last);
  const auto gi = view(grad_input.data(), Type<T>::kDtype, {batch, channels, height, width}, "grad_input", last);
  roi_pool_backward_cpu(gi, g, w, box, 0.5);
  for (size_t i = 0; i < grads.size(); ++i)
    expect_near("roi_pool gradient", Type<T>::read(grad_input[i]), grads[i], Type<T>::kTolerance);
}

template <typename T>
void check_mil(std::vector<int64_t> lengths, int64_t classes) {
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
  std::vector<int64_t> offsets{0};
  for (int64_t length : lengths) offsets.push_back(offsets.back() + length);
  const int64_t rows = offsets.back(), count = static_cast<int64_t>(lengths.size());
  auto scores = random_values<T>(rows * classes), logits = random_values<T>(rows * classes);
  for (size_t i = 0; i < logits.size(); i += 7) logits[i] = Type<T>::write(-std::numeric_limits<double>::infinity());
  for (size_t i = 3; i < logits.size(); i += 11) logits[i] = Type<T>::write(1e4);
  std::vector<T> output(count * classes), grad = random_values<T>(count * classes), gs(scores.size()),
                                          gl(scores.size());
  std::vector<A> peak(count * classes), total(count * classes);
  const Dtype t = Type<T>::kDtype, a = Type<A>::kDtype;
  const auto o = view(output.data(), t, {count, classes}, "output"), g = view(grad.data(), t, {count, classes}, "grad");
  const auto p = view(peak.data(), a, {count, classes}, "peak"), n = view(total.data(), a, {count, classes}, "total");
  const auto s = view(scores.data(), t, {rows, classes}, "scores"),
             l = view(logits.data(), t, {rows, classes}, "logits");
  const auto vgs = view(gs.data(), t, {rows, classes}, "grad_scores");
  const auto vgl = view(gl.data(), t, {rows, classes}, "grad_logits");
  const auto bounds = view(offsets.data(), Dtype::kInt64, {count + 1}, "offsets");
  mil_aggregate_forward_cpu(o, p, n, s, l, bounds);
  mil_aggregate_backward_cpu(vgs, vgl, g, s, l, o, p, n, bounds);
  for (int64_t b = 0; b < count; ++b)
    for (int64_t c = 0; c < classes; ++c) {
      double top = std::numeric_limits<double>::lowest(), sum = 0, weighted = 0;
      for (int64_t row = offsets[b]; row < offsets[b + 1]; ++row)
        top = std::max(top, Type<T>::read(logits[row * classes + c]));
      for (int64_t row = offsets[b]; row < offsets[b + 1]; ++row) {
        const double e = std::exp(Type<T>::read(logits[row * classes + c]) - top);
        sum += e;
        weighted += e * Type<T>::read(scores[row * classes + c]);
      }
      const double mean = sum == 0 ? 0 : weighted / sum;
      expect_near("mil_aggregate", Type<T>::read(output[b * classes + c]), mean, Type<T>::kTolerance);
      for (int64_t row = offsets[b]; row < offsets[b + 1]; ++row) {
        const int64_t at = row * classes + c;
        const double weight = sum == 0 ? 0 : std::exp(Type<T>::read(logits[at]) - top) / sum;
        const double expected = Type<T>::read(grad[b * classes + c]) * weight;
        expect_near("grad_scores", Type<T>::read(gs[at]), expected, 4 * Type<T>::kTolerance);
        expect_near("grad_logits", Type<T>::read(gl[at]), expected * (Type<T>::read(scores[at]) - mean),
                    8 * Type<T>::kTolerance);
      }
    }
  mil_logsumexp_forward_cpu(o, p, n, s, bounds, -2.5);
  mil_logsumexp_backward_cpu(vgs, g, s, p, n, bounds, -2.5);
}

// Few edges make few groups, whose losses are found once; many are searched with exact scores.
void check_edge_boxes(int64_t height, int64_t width, double density) {
  const int64_t frames = 2, pixels = frames * height * width;
  EdgeBoxesParams params;
  params.max_boxes = 40;
  params.min_box_area = 60;
  std::vector<float> edges(pixels, 0.0f), orientation(pixels);
  for (float& edge : edges)
    if (uniform(0, 1) < density) edge = static_cast<float>(uniform(0, 1));
  for (float& angle : orientation) angle = static_cast<float>(uniform(-10, 10));
  std::vector<float> boxes(frames * params.max_boxes * 4), scores(frames * params.max_boxes);
  std::vector<int64_t> counts(frames);
  edge_boxes_cpu(view(boxes.data(), Dtype::kFloat32, {frames, params.max_boxes, 4}, "boxes"),
                 view(scores.data(), Dtype::kFloat32, {frames, params.max_boxes}, "scores"),
                 view(counts.data(), Dtype::kInt64, {frames}, "counts"),
                 view(edges.data(), Dtype::kFloat32, {frames, height, width}, "edges"),
                 view(orientation.data(), Dtype::kFloat32, {frames, height, width}, "orientation"), params);
  for (int64_t f = 0; f < frames; ++f)
    for (int64_t i = 0; i < counts[f]; ++i) {
      const float* box = &boxes[(f * params.max_boxes + i) * 4];
      if (!(box[0] >= 1 && box[1] >= 1 && box[2] <= width && box[3] <= height)) fail("edge_boxes", box[2], width);
      const float score = scores[f * params.max_boxes + i];
      if (!(score > 0) || (i > 0 && score > scores[f * params.max_boxes + i - 1])) fail("edge_boxes score", score, 0);
    }
}

void check_edge_boxes() {
  for (double density : {0.0, 0.02, 0.1, 0.5, 1.0})
    for (const auto& [height, width] : {std::pair{1, 1}, {2, 90}, {61, 1}, {60, 81}, {97, 33}})
      check_edge_boxes(height, width, density);
}

template <typename T>
void check_type() {
  for (bool last : {false, true})
    for (int64_t channels : {1, 3, 4, 7, 16, 31, 33, 65}) {
      check_roi_pool<T>(channels, 1, 1, 1, 1, last, 3);
      check_roi_pool<T>(channels, 13, 13, 6, 6, last, 20);
      check_roi_pool<T>(channels, 5, 60, 3, 2, last, 1e30);
      check_roi_pool<T>(channels, 2, 9, 9, 1, last, 5);
    }
  check_roi_pool<T>(2, 257, 257, 2, 2, false, 9);
  for (int64_t classes : {1, 2, 3, 5, 7, 8, 9, 12, 15, 17, 18, 31, 33, 65})
    check_mil<T>({0, 1, 2, 70, 129, 0}, classes);
  check_mil<T>({3000}, 17);
  check_mil<T>({0, 0}, 3);
}

}  // namespace

int main() {
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2}) {
    if (!isa_available(isa)) continue;
    active_isa() = isa;
    check_type<double>();
    check_type<float>();
    check_type<Half>();
    check_type<BFloat16>();
    check_edge_boxes();
    std::printf("%s passed\n", isa_name(isa));
  }
}
