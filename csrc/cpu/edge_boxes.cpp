// Edge Boxes on the CPU: frames of a stack, and threads over or inside them.
#include "edge_boxes.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <string>

#include "edge_boxes_search.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace avfast {
namespace {

using edge_boxes::ColumnMap;
using edge_boxes::Proposal;

void check_map(const TensorView& x) {
  check_ndim(x, 3, "[F, H, W]");
  check_dtype(x, {Dtype::kFloat32});
  if (x.device.type != DeviceType::kCPU)
    throw TypeError(std::string(x.name) + ": expected a CPU tensor, got " + x.device.to_string() +
                    "; edge_boxes runs on the CPU");
  check_contiguous(x);
  if (x.shape[1] * x.shape[2] >= std::numeric_limits<int32_t>::max())
    throw ValueError(std::string(x.name) + ": expected less than 2^31 pixels a frame, got " + x.shape_string());
}

void check_output(const TensorView& x, const TensorView& as, Dtype dtype) {
  check_dtype(x, {dtype});
  check_same_device(x, as);
  check_contiguous(x);
}

// Within [low, high]; NaN is not.
void check_range(const char* name, float value, float low, float high, const char* range) {
  if (!(value >= low && value <= high))
    throw ValueError(std::string(name) + ": expected " + range + ", got " + std::to_string(value));
}

void check_params(const EdgeBoxesParams& p) {
  constexpr float kMax = std::numeric_limits<float>::max(), kTiny = std::numeric_limits<float>::min();
  if (p.max_boxes < 1) throw ValueError("max_boxes: expected at least 1, got " + std::to_string(p.max_boxes));
  check_range("alpha", p.alpha, kTiny, std::nextafter(1.0f, 0.0f), "a value between 0 and 1");
  check_range("beta", p.beta, kTiny, 1, "a value above 0 and up to 1");
  check_range("eta", p.eta, kTiny, 1, "a value above 0 and up to 1");
  check_range("min_score", p.min_score, 0, kMax, "a finite value of at least 0");
  check_range("edge_min_mag", p.edge_min_mag, 0, kMax, "a finite value of at least 0");
  check_range("edge_merge_thr", p.edge_merge_thr, 0, kMax, "a finite value of at least 0");
  check_range("cluster_min_mag", p.cluster_min_mag, 0, kMax, "a finite value of at least 0");
  check_range("max_aspect_ratio", p.max_aspect_ratio, 1, kMax, "a finite value of at least 1");
  check_range("min_box_area", p.min_box_area, kTiny, kMax, "a finite value above 0");
  check_range("gamma", p.gamma, 0, kMax, "a finite value of at least 0");
  check_range("kappa", p.kappa, 0, kMax, "a finite value of at least 0");
}

ColumnMap read_map(const TensorView& x, int64_t frame) {
  const int64_t height = x.shape[1], width = x.shape[2];
  ColumnMap map{static_cast<int>(width), static_cast<int>(height), std::vector<float>(width * height)};
  const float* values = x.ptr<float>() + frame * height * width;
  constexpr int64_t kTile = 16;  // a tile's columns stay in cache while its rows are read
  float probe = 0;               // NaN as soon as a value is not finite
  for (int64_t top = 0; top < height; top += kTile) {
    for (int64_t xx = 0; xx < width; ++xx) {
      for (int64_t y = top; y < std::min(top + kTile, height); ++y) {
        const float value = values[y * width + xx];
        probe += value * 0.0f;
        map.values[xx * height + y] = value;
      }
    }
  }
  if (!(probe == 0))
    throw ValueError(std::string(x.name) + ": expected finite values, found NaN or infinity in frame " +
                     std::to_string(frame));
  return map;
}

}  // namespace

void edge_boxes_cpu(const TensorView& boxes, const TensorView& scores, const TensorView& counts,
                    const TensorView& edges, const TensorView& orientation, const EdgeBoxesParams& params) {
  check_map(edges);
  check_map(orientation);
  const int64_t frames = edges.shape[0], height = edges.shape[1], width = edges.shape[2];
  check_shape(orientation, {frames, height, width}, "[F, H, W] as edges");
  check_params(params);
  check_shape(boxes, {frames, params.max_boxes, 4}, "[F, max_boxes, 4]");
  check_shape(scores, {frames, params.max_boxes}, "[F, max_boxes]");
  check_shape(counts, {frames}, "[F]");
  check_output(boxes, edges, Dtype::kFloat32);
  check_output(scores, edges, Dtype::kFloat32);
  check_output(counts, edges, Dtype::kInt64);
  if (height > 0 && width > 0) edge_boxes::count_windows(static_cast<int>(width), static_cast<int>(height), params);

  const auto propose = [&](int64_t frame, int threads) {
    counts.ptr<int64_t>()[frame] = 0;
    if (height == 0 || width == 0) return;
    const edge_boxes::ScoreMaps maps =
        edge_boxes::build_score_maps(read_map(edges, frame), read_map(orientation, frame), params);
    float* box = boxes.ptr<float>() + frame * params.max_boxes * 4;
    float* score = scores.ptr<float>() + frame * params.max_boxes;
    for (const Proposal& proposal : edge_boxes::search(maps, params, threads)) {
      // The outer rows and columns of pixels are the outline; their inner edges bound the box.
      *box++ = static_cast<float>(proposal.box.x + 1);
      *box++ = static_cast<float>(proposal.box.y + 1);
      *box++ = static_cast<float>(proposal.box.x + 1 + proposal.box.w);
      *box++ = static_cast<float>(proposal.box.y + 1 + proposal.box.h);
      *score++ = proposal.score;
      ++counts.ptr<int64_t>()[frame];
    }
  };
  int threads = 1;
#ifdef _OPENMP
  threads = omp_get_max_threads();
#endif
  if (frames == 1) return propose(0, threads);
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t frame = 0; frame < frames; ++frame) {
    try {
      propose(frame, 1);
    } catch (...) {
#pragma omp critical
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace avfast
