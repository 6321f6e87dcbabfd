// RoI max pooling on the CPU: bins, and the tiles that threads share.
#include "roi_pool.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/half.h"
#include "cpu/memory.h"
#include "cpu/simd/kernels.h"
#include "dispatch.h"
#include "roi_pool_bins.h"
#include "roi_pool_checks.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace avfast {
namespace {

constexpr int64_t kBoxesPerTile = 64;         // of one image: more are shared among threads
constexpr int64_t kGradientChannels = 16;     // a cache line of channels_last floats
constexpr int64_t kSerialValues = 64 * 1024;  // fewer are not worth waking a second thread

int thread_count(int64_t values) {
#ifdef _OPENMP
  return values < kSerialValues ? 1 : omp_get_max_threads();
#else
  (void)values;
  return 1;
#endif
}

int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// --- boxes -------------------------------------------------------------------------------------------------------

template <typename B>
void check_box_values(const B* boxes, int64_t count, int64_t batch) {
  for (int64_t k = 0; k < count; ++k) {
    if (roi_is_valid(boxes + 5 * k, batch)) continue;
    std::ostringstream out;
    out << "boxes[" << k << "]: expected a batch index in [0, " << batch << ") and no NaN, got [";
    for (int i = 0; i < 5; ++i) out << (i ? ", " : "") << boxes[5 * k + i];
    out << ']';
    throw ValueError(out.str());
  }
}

// Boxes by image, in their own order within each.
struct Groups {
  std::vector<int64_t> start;  // [batch + 1]
  std::vector<int64_t> boxes;  // [K]
};

template <typename B>
Groups group_by_image(const B* boxes, int64_t count, int64_t batch) {
  Groups groups{std::vector<int64_t>(batch + 1), std::vector<int64_t>(count)};
  for (int64_t k = 0; k < count; ++k) ++groups.start[static_cast<int64_t>(boxes[5 * k]) + 1];
  for (int64_t n = 0; n < batch; ++n) groups.start[n + 1] += groups.start[n];
  std::vector<int64_t> next(groups.start.begin(), groups.start.end() - 1);
  for (int64_t k = 0; k < count; ++k) groups.boxes[next[static_cast<int64_t>(boxes[5 * k])]++] = k;
  return groups;
}

// [K, pooled_h + pooled_w]: the bins of each box along both axes.
template <typename B>
std::vector<BinRange> box_bins(const B* boxes, int64_t count, int64_t pooled_h, int64_t pooled_w, int64_t height,
                               int64_t width, double spatial_scale) {
  std::vector<BinRange> bins(count * (pooled_h + pooled_w));
  BinRange* next = bins.data();
  for (int64_t k = 0; k < count; ++k) {
    const B* box = boxes + 5 * k;
    const auto axis_h = roi_axis(box[2], box[4], static_cast<B>(spatial_scale), pooled_h);
    const auto axis_w = roi_axis(box[1], box[3], static_cast<B>(spatial_scale), pooled_w);
    for (int64_t i = 0; i < pooled_h; ++i) *next++ = roi_bin(axis_h, i, height);
    for (int64_t i = 0; i < pooled_w; ++i) *next++ = roi_bin(axis_w, i, width);
  }
  return bins;
}

// Some of the boxes of one image, and the part of the map they cover.
struct Chunk {
  int64_t image;
  const int64_t* boxes;
  int64_t count;
  Window window;       // to be read once for all; empty where reading box by box is less
  int64_t read_cells;  // of the largest window read at once
};

Chunk make_chunk(int64_t image, const int64_t* boxes, int64_t count, const BinRange* bins, int64_t pooled_h,
                 int64_t pooled_w) {
  Window all{INT32_MAX, 0, INT32_MAX, 0};
  int64_t cells = 0, largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const BinRange* rows = bins + boxes[i] * (pooled_h + pooled_w);
    const BinRange* columns = rows + pooled_h;
    const Window window{rows[0].begin, rows[pooled_h - 1].end, columns[0].begin, columns[pooled_w - 1].end};
    if (window.cells() == 0) continue;
    all = {std::min(all.top, window.top), std::max(all.bottom, window.bottom), std::min(all.left, window.left),
           std::max(all.right, window.right)};
    cells += window.cells();
    largest = std::max(largest, window.cells());
  }
  const bool together = all.cells() < cells;
  return {image, boxes, count, together ? all : Window{}, together ? all.cells() : largest};
}

std::vector<Chunk> make_chunks(const Groups& groups, const BinRange* bins, int64_t pooled_h, int64_t pooled_w) {
  std::vector<Chunk> chunks;
  for (size_t n = 0; n + 1 < groups.start.size(); ++n)
    for (int64_t at = groups.start[n]; at < groups.start[n + 1]; at += kBoxesPerTile) {
      const int64_t count = std::min(kBoxesPerTile, groups.start[n + 1] - at);
      chunks.push_back(make_chunk(static_cast<int64_t>(n), groups.boxes.data() + at, count, bins, pooled_h, pooled_w));
    }
  return chunks;
}

// --- tiles -------------------------------------------------------------------------------------------------------

int winner_bytes(const TensorView& winner) {
  return winner.dtype == Dtype::kUInt8 ? 1 : winner.dtype == Dtype::kUInt16 ? 2 : 4;
}

// Runs f(tile, scratch) for `tiles` tiles; neighbouring tiles share pages, so threads take them in runs.
template <typename F>
void for_each_tile(int64_t tiles, int64_t values, int64_t scratch_bytes, F&& f) {
  const int threads = static_cast<int>(std::min<int64_t>(thread_count(values), std::max<int64_t>(tiles, 1)));
  constexpr int64_t kLine = 64;
  const std::unique_ptr<char[]> scratch(new char[threads * (scratch_bytes + kLine) + kLine]);
  const int64_t run = std::max<int64_t>(1, tiles / (8 * threads));
#pragma omp parallel for num_threads(threads) schedule(dynamic, run) if (threads > 1)
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const auto begin = reinterpret_cast<uintptr_t>(scratch.get()) + thread_index() * (scratch_bytes + kLine);
    f(tile, reinterpret_cast<char*>((begin + kLine - 1) / kLine * kLine));
  }
}

template <typename T>
size_t bytes_of(const TensorView& x) {
  return static_cast<size_t>(x.numel()) * sizeof(T);
}

template <typename T, typename B>
void forward(const TensorView& output, const TensorView& winner, const TensorView& input, const TensorView& boxes,
             double spatial_scale) {
  const int64_t batch = input.shape[0], channels = input.shape[1], height = input.shape[2], width = input.shape[3];
  const int64_t count = boxes.shape[0], pooled_h = output.shape[2], pooled_w = output.shape[3];
  check_box_values(boxes.ptr<B>(), count, batch);
  if (output.numel() == 0) return;
  const Groups groups = group_by_image(boxes.ptr<B>(), count, batch);
  const auto bins = box_bins(boxes.ptr<B>(), count, pooled_h, pooled_w, height, width, spatial_scale);
  const std::vector<Chunk> chunks = make_chunks(groups, bins.data(), pooled_h, pooled_w);

  const RoiPoolKernels<T>& kernels = roi_pool_kernels<T>();
  const bool channels_last = !input.is_contiguous();
  const int64_t blocks = (channels + kernels.block - 1) / kernels.block;
  const int64_t bin_count = pooled_h * pooled_w, cells = height * width;
  const int bytes = winner_bytes(winner);
  int64_t read_cells = 0;
  for (const Chunk& chunk : chunks) read_cells = std::max(read_cells, chunk.read_cells);
  prefer_huge_pages(output.data, bytes_of<T>(output));
  if (winner.numel() != 0) prefer_huge_pages(winner.data, static_cast<size_t>(winner.numel()) * bytes);

  const auto run = [&](int64_t index, char* scratch) {
    const Chunk& chunk = chunks[index / blocks];
    const int64_t channel = index % blocks * kernels.block;
    const int64_t out = channel * (channels_last ? 1 : bin_count);
    RoiPoolTile<T> tile{};
    tile.input = input.ptr<T>() + chunk.image * channels * cells + channel * (channels_last ? 1 : cells);
    tile.channels = std::min(kernels.block, channels - channel);
    tile.channel_stride = channels_last ? 1 : cells;
    tile.cell_stride = channels_last ? channels : 1;
    tile.width = width;
    tile.boxes = chunk.boxes;
    tile.box_count = chunk.count;
    tile.bins = bins.data();
    tile.pooled_h = pooled_h;
    tile.pooled_w = pooled_w;
    tile.channels_last = channels_last;
    tile.all_channels = channels;
    tile.output = output.ptr<T>() + out;
    tile.winner = winner.numel() == 0 ? nullptr : winner.ptr<char>() + out * bytes;
    tile.winner_bytes = bytes;
    tile.window = chunk.window;
    tile.scratch = scratch;
    kernels.forward(tile);
  };
  for_each_tile(static_cast<int64_t>(chunks.size()) * blocks, output.numel(),
                kernels.scratch_bytes(read_cells, bin_count), run);
}

template <typename T, typename B>
void backward(const TensorView& grad_input, const TensorView& grad_output, const TensorView& winner,
              const TensorView& boxes) {
  const int64_t batch = grad_input.shape[0], channels = grad_input.shape[1];
  const int64_t cells = grad_input.shape[2] * grad_input.shape[3];
  const int64_t bins = grad_output.shape[2] * grad_output.shape[3];
  check_box_values(boxes.ptr<B>(), boxes.shape[0], batch);
  if (grad_input.numel() == 0) return;
  const Groups groups = group_by_image(boxes.ptr<B>(), boxes.shape[0], batch);

  const RoiPoolKernels<T>& kernels = roi_pool_kernels<T>();
  const bool channels_last = !grad_input.is_contiguous();
  const int64_t block = std::min(channels, kGradientChannels), blocks = (channels + block - 1) / block;
  const int bytes = winner_bytes(winner);
  prefer_huge_pages(grad_input.data, bytes_of<T>(grad_input));

  const auto run = [&](int64_t index, char* scratch) {
    const int64_t image = index / blocks, channel = index % blocks * block;
    const int64_t out = channel * (channels_last ? 1 : bins);
    RoiPoolGradientTile<T> tile{};
    tile.grad_input = grad_input.ptr<T>() + image * channels * cells + channel * (channels_last ? 1 : cells);
    tile.channels = std::min(block, channels - channel);
    tile.cells = cells;
    tile.channels_last = channels_last;
    tile.all_channels = channels;
    tile.boxes = groups.boxes.data() + groups.start[image];
    tile.box_count = groups.start[image + 1] - groups.start[image];
    tile.bins = bins;
    tile.grad_output = grad_output.ptr<T>() + out;
    tile.winner = winner.ptr<char>() + out * bytes;
    tile.winner_bytes = bytes;
    tile.scratch = scratch;
    kernels.backward(tile);
  };
  for_each_tile(batch * blocks, grad_output.numel() + grad_input.numel(),
                kernels.gradient_scratch_bytes(block, cells, bins), run);
}

}  // namespace

void roi_pool_forward_cpu(const TensorView& output, const TensorView& winner, const TensorView& input,
                          const TensorView& boxes, double spatial_scale) {
  check_roi_pool(input, output, winner, boxes, false);
  dispatch_float_or_half<Half, BFloat16>(input, [&](auto t) {
    dispatch_float(boxes, [&](auto b) {
      forward<typename decltype(t)::type, typename decltype(b)::type>(output, winner, input, boxes, spatial_scale);
    });
  });
}

void roi_pool_backward_cpu(const TensorView& grad_input, const TensorView& grad_output, const TensorView& winner,
                           const TensorView& boxes, double /* the winners say it all */) {
  check_roi_pool(grad_input, grad_output, winner, boxes, true);
  dispatch_float_or_half<Half, BFloat16>(grad_input, [&](auto t) {
    dispatch_float(boxes, [&](auto b) {
      backward<typename decltype(t)::type, typename decltype(b)::type>(grad_input, grad_output, winner, boxes);
    });
  });
}

}  // namespace avfast
