// RoI max pooling on CUDA: one launch forward, one backward, no float atomics.
#include "dispatch.h"
#include "launch.cuh"
#include "roi_pool.h"
#include "roi_pool_boxes.cuh"
#include "roi_pool_checks.h"
#include "scalar.cuh"

namespace avfast {
namespace {

// --- forward ---------------------------------------------------------------------------------------------------

// The greatest value of a bin in each of kVec neighbouring channels, and the cell that holds it.
template <typename T, int kVec>
struct Maxima {
  Accumulator<T> value[kVec];
  int32_t cell[kVec];
};

// `map` is the first of kVec channels at cell 0, `cell_stride` the distance from one cell to the next. NaN cells are
// ignored; where a bin has nothing above -inf, its first -inf wins, and its first cell where all are NaN.
template <typename T, int kVec>
__device__ Maxima<T, kVec> max_over(const T* map, int64_t cell_stride, const Window& window, int32_t width) {
  using Acc = Accumulator<T>;
  Maxima<T, kVec> best;
  for (int j = 0; j < kVec; ++j) {
    best.value[j] = -kInfinity<Acc>;
    best.cell[j] = kEmptyBin;
  }
  for (int32_t row = window.rows.begin; row < window.rows.end; ++row) {
    const int32_t first = row * width;
    for (int32_t cell = first + window.columns.begin; cell < first + window.columns.end; ++cell) {
      const Vector<T, kVec> values = load_vector<kVec>(map + cell * cell_stride);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const Acc value = widen(values.data[j]);
        // Only an unset bin can take -inf, so the rare values cost the common ones one comparison in all.
        if (value > best.value[j] || (value == -kInfinity<Acc> && best.cell[j] == kEmptyBin)) {
          best.value[j] = value;
          best.cell[j] = cell;
        }
      }
    }
  }
  if (window.empty()) {
    for (int j = 0; j < kVec; ++j) best.value[j] = 0;
    return best;
  }
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    if (best.cell[j] != kEmptyBin) continue;
    best.value[j] = kNaN<Acc>;
    best.cell[j] = window.rows.begin * width + window.columns.begin;
  }
  return best;
}

template <typename Winner, int kVec>
__device__ void store_cells(void* winners, int64_t at, const int32_t (&cells)[kVec]) {
  Vector<Winner, kVec> values;
#pragma unroll
  for (int j = 0; j < kVec; ++j) values.data[j] = static_cast<Winner>(cells[j]);
  store_vector(static_cast<Winner*>(winners) + at, values);
}

template <typename T, int kVec>
__device__ void store_maxima(T* output, const Winners& winners, int64_t at, const Maxima<T, kVec>& best) {
  Vector<T, kVec> values;
#pragma unroll
  for (int j = 0; j < kVec; ++j) values.data[j] = narrow<T>(best.value[j]);
  store_vector(output + at, values);
  if (winners.data == nullptr) return;
  // Chosen at run time, once per output: three copies of every forward kernel would buy nothing.
  if (winners.dtype == Dtype::kUInt8)
    store_cells<uint8_t>(winners.data, at, best.cell);
  else if (winners.dtype == Dtype::kUInt16)
    store_cells<uint16_t>(winners.data, at, best.cell);
  else
    store_cells<int32_t>(winners.data, at, best.cell);
}

// Contiguous maps. A block pools `boxes_per_block` consecutive boxes in `group` channels; a thread keeps one bin and
// walks the channels, so neighbouring threads write neighbouring outputs. With kStaged the group's planes, which are
// one run of memory, are first copied to shared memory by 16-byte accesses, and stay while the image stays the same.
template <typename T, bool kStaged>
__global__ void roi_pool_forward_kernel(T* output, Winners winners, const T* input, Boxes boxes, int64_t channels,
                                        int32_t group, int32_t boxes_per_block) {
  const uint32_t groups = static_cast<uint32_t>((channels + group - 1) / group);
  const int64_t first_channel = static_cast<int64_t>(blockIdx.x % groups) * group;
  const int32_t count = static_cast<int32_t>(min(static_cast<int64_t>(group), channels - first_channel));
  const int64_t first_box = static_cast<int64_t>(blockIdx.x / groups) * boxes_per_block;
  const int64_t last_box = min(first_box + boxes_per_block, boxes.count);
  const int64_t cells = boxes.cells();
  const int32_t bins = boxes.bins();
  T* stage = reinterpret_cast<T*>(shared_memory());
  int64_t staged_image = -1;

  for (int64_t k = first_box; k < last_box; ++k) {
    const int64_t image = box_image(boxes, k);
    const T* planes = input + (max(image, int64_t{0}) * channels + first_channel) * cells;
    if (kStaged && image >= 0 && image != staged_image) {
      __syncthreads();  // the planes of the last image are no longer read
      copy_to_shared(stage, planes, static_cast<int32_t>(count * cells), threadIdx.y * blockDim.x + threadIdx.x,
                     blockDim.x * blockDim.y);
      __syncthreads();
      staged_image = image;
    }
    for (int32_t bin = threadIdx.x; bin < bins; bin += blockDim.x) {
      const Window window = image < 0 ? Window{} : bin_window(boxes, k, bin);
      for (int32_t c = threadIdx.y; c < count; c += blockDim.y) {
        const T* plane = (kStaged ? stage : planes) + c * cells;
        const int64_t at = (k * channels + first_channel + c) * bins + bin;
        store_maxima(output, winners, at, max_over<T, 1>(plane, 1, window, boxes.width));
      }
    }
  }
}

// Channels-last maps: a thread pools kVec neighbouring channels of one bin, 16 bytes at each access.
template <typename T, int kVec>
__global__ void roi_pool_forward_channels_last_kernel(T* output, Winners winners, const T* input, Boxes boxes,
                                                      int32_t channels, int32_t blocks_per_box) {
  const int64_t k = blockIdx.x / blocks_per_box;
  const uint32_t i = blockIdx.x % blocks_per_box * blockDim.x + threadIdx.x;
  const uint32_t vectors = channels / kVec;
  const int32_t bin = static_cast<int32_t>(i / vectors);
  const int32_t channel = static_cast<int32_t>(i % vectors) * kVec;
  if (bin >= boxes.bins()) return;

  const int64_t image = box_image(boxes, k);
  const Window window = image < 0 ? Window{} : bin_window(boxes, k, bin);
  const T* map = input + max(image, int64_t{0}) * boxes.cells() * channels + channel;
  store_maxima(output, winners, (k * boxes.bins() + bin) * channels + channel,
               max_over<T, kVec>(map, channels, window, boxes.width));
}

// --- backward --------------------------------------------------------------------------------------------------

// Boxes that one thread tests before the block visits those of its image.
constexpr int kBoxesPerThread = 8;
// Loads in flight before their values are used.
constexpr int kBatch = 8;

// The part of a map that a block owns: a run of cells in row-major order, and the rows that they touch.
struct MapTile {
  int64_t image;
  int32_t begin, cells;
  BinRange rows;

  __device__ MapTile(const Boxes& boxes, int64_t image, int32_t index, int32_t most_cells) : image(image) {
    begin = index * most_cells;
    cells = static_cast<int32_t>(min(static_cast<int64_t>(most_cells), boxes.cells() - begin));
    rows = {begin / boxes.width, (begin + cells - 1) / boxes.width + 1};
  }
};

// One channel of one box: bin b lies at [b * stride].
template <typename T>
struct BinGradients {
  const T* gradient;
  const void* winner;
  int64_t stride;
};

// Adds bins [begin, end) of one channel to the cells that won them, in order. The tile's first cell lies at sums[0].
template <typename Winner, typename T>
__device__ void add_bins(Accumulator<T>* sums, int32_t sums_stride, const BinGradients<T>& bins, int32_t begin,
                         int32_t end, const MapTile& tile) {
  for (int32_t first = begin; first < end; first += kBatch) {
    T gradient[kBatch];
    Winner winner[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int64_t at = min(first + j, end - 1) * bins.stride;
      gradient[j] = bins.gradient[at];
      winner[j] = static_cast<const Winner*>(bins.winner)[at];
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      // An empty bin's winner exceeds every cell of the map, so it is outside every tile.
      const uint32_t cell = static_cast<uint32_t>(winner[j]) - static_cast<uint32_t>(tile.begin);
      if (first + j < end && cell < static_cast<uint32_t>(tile.cells))
        sums[static_cast<int32_t>(cell) * sums_stride] += widen(gradient[j]);
    }
  }
}

template <typename T>
__device__ void add_bins(Dtype winner_dtype, Accumulator<T>* sums, int32_t sums_stride, const BinGradients<T>& bins,
                         int32_t begin, int32_t end, const MapTile& tile) {
  if (winner_dtype == Dtype::kUInt8)
    add_bins<uint8_t>(sums, sums_stride, bins, begin, end, tile);
  else if (winner_dtype == Dtype::kUInt16)
    add_bins<uint16_t>(sums, sums_stride, bins, begin, end, tile);
  else
    add_bins<int32_t>(sums, sums_stride, bins, begin, end, tile);
}

// One warp writes its channels' tiles, `stride` apart in shared memory, to planes of `cells` cells.
template <typename T, int kVec>
__device__ void store_planes(T* to, int64_t cells, const Accumulator<T>* sums, int32_t stride, int32_t channels,
                             int32_t tile_cells, int32_t lane) {
  for (int32_t i = lane * kVec; i < channels * tile_cells; i += kWarpSize * kVec) {
    int32_t channel = i / tile_cells;
    int32_t cell = i % tile_cells;
    T* at = to + channel * cells + cell;
    Vector<T, kVec> values;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      values.data[j] = narrow<T>(sums[channel * stride + cell]);
      if (++cell == tile_cells) {
        cell = 0;
        ++channel;
      }
    }
    store_vector(at, values);
  }
}

// The pooled rows of box `k` whose bins reach the tile.
__device__ BinRange pooled_rows_over(const Boxes& boxes, int64_t k, const MapTile& tile) {
  BinRange pooled = {0, boxes.pooled_height};
  if (tile.cells == boxes.cells()) return pooled;
  while (pooled.begin < pooled.end && box_rows(boxes, k, pooled.begin, pooled.begin).end <= tile.rows.begin)
    ++pooled.begin;
  while (pooled.end > pooled.begin && box_rows(boxes, k, pooled.end - 1, pooled.end - 1).begin >= tile.rows.end)
    --pooled.end;
  return pooled;
}

// Bit i of hits[w] says whether box first + 32 w + i reaches the tile. Called by the whole block.
__device__ void list_boxes(uint32_t* hits, const Boxes& boxes, int64_t first, const MapTile& tile) {
  __syncthreads();  // the list of the last round has been read
#pragma unroll
  for (int i = 0; i < kBoxesPerThread; ++i) {
    const int32_t index = i * blockDim.x + threadIdx.x;
    const int64_t k = first + index;
    bool hit = k < boxes.count && box_image(boxes, k) == tile.image;
    if (hit) {
      const BinRange rows = box_rows(boxes, k, 0, boxes.pooled_height - 1);
      hit = rows.begin < tile.rows.end && rows.end > tile.rows.begin;
    }
    const uint32_t ballot = __ballot_sync(kFullWarp, hit);
    if (index % kWarpSize == 0) hits[index / kWarpSize] = ballot;
  }
  __syncthreads();
}

// How the backward pass is cut: a block owns a tile of one image's map in blockDim.x channels, one per thread.
struct BackwardTiles {
  int32_t tile_cells;   // cells of a tile, a run in row-major order
  int32_t sums_stride;  // contiguous: elements from one channel's sums to the next
  int32_t stage_bytes;  // contiguous: of one warp's copy of a box's gradients and winners; 0 for none
};

// The 32 channels of a warp, fewer at the end; the thread's own is first + lane.
struct WarpChannels {
  int64_t first;
  int32_t count, lane;

  __device__ bool has_own() const { return lane < count; }
};

// A warp adds one box to its sums. Contiguous gradients of 32 channels are one run of memory: where all of it is
// needed, it is copied to `stage` by 16-byte accesses. Channels-last ones are read by neighbouring threads side by
// side.
template <bool kChannelsLast, typename T>
__device__ void add_box(Accumulator<T>* sums, int32_t sums_stride, T* stage, const T* grad_output,
                        const Winners& winners, const Boxes& boxes, int64_t k, int64_t channels,
                        const WarpChannels& own, const MapTile& tile) {
  const BinRange pooled = pooled_rows_over(boxes, k, tile);
  const int32_t bins = boxes.bins();
  const auto* winner = static_cast<const unsigned char*>(winners.data);
  const bool staged = !kChannelsLast && stage != nullptr && pooled.end - pooled.begin == boxes.pooled_height;
  const int64_t run = (k * channels + own.first) * bins;
  BinGradients<T> gradients;
  if (kChannelsLast) {
    const int64_t at = k * channels * bins + own.first + own.lane;
    gradients = {grad_output + at, winner + at * winners.size(), channels};
  } else if (staged) {
    auto* stage_winner = reinterpret_cast<unsigned char*>(stage + kWarpSize * bins);
    copy_to_shared(stage, grad_output + run, own.count * bins, own.lane, kWarpSize);
    copy_to_shared(stage_winner, winner + run * winners.size(), own.count * bins * winners.size(), own.lane, kWarpSize);
    __syncwarp();
    gradients = {stage + own.lane * bins, stage_winner + own.lane * bins * winners.size(), 1};
  } else {
    const int64_t at = run + static_cast<int64_t>(own.lane) * bins;
    gradients = {grad_output + at, winner + at * winners.size(), 1};
  }
  if (own.has_own())
    add_bins(winners.dtype, sums, sums_stride, gradients, pooled.begin * boxes.pooled_width,
             pooled.end * boxes.pooled_width, tile);
  if (staged) __syncwarp();  // before the next box overwrites the copy
}

// Every sum is built in shared memory by the one thread that owns its channel, in the order of boxes and bins, so the
// result is the same in every run. The block finds its image's boxes itself: each thread tests some, and the ballots
// of the warps are the list.
template <typename T, bool kChannelsLast>
__global__ void roi_pool_backward_kernel(T* grad_input, const T* grad_output, Winners winners, Boxes boxes,
                                         int64_t channels, BackwardTiles tiles) {
  using Acc = Accumulator<T>;
  const int32_t threads = blockDim.x;
  const int32_t warps = threads / kWarpSize;
  const int32_t warp = threadIdx.x / kWarpSize;
  const int64_t cells = boxes.cells();
  const uint32_t groups = static_cast<uint32_t>((channels + threads - 1) / threads);
  const uint32_t tiles_per_map = static_cast<uint32_t>((cells + tiles.tile_cells - 1) / tiles.tile_cells);
  const MapTile tile(boxes, blockIdx.x / groups / tiles_per_map, blockIdx.x / groups % tiles_per_map, tiles.tile_cells);
  WarpChannels own;
  own.first = static_cast<int64_t>(blockIdx.x % groups) * threads + warp * kWarpSize;
  own.count = static_cast<int32_t>(max(int64_t{0}, min(int64_t{kWarpSize}, channels - own.first)));
  own.lane = threadIdx.x % kWarpSize;

  // Shared memory: the list of boxes, then each warp's copy of a box (contiguous only), then the sums.
  uint32_t* hits = reinterpret_cast<uint32_t*>(shared_memory());
  unsigned char* stages = reinterpret_cast<unsigned char*>(hits + kBoxesPerThread * warps);
  T* stage = tiles.stage_bytes == 0 ? nullptr : reinterpret_cast<T*>(stages + warp * tiles.stage_bytes);
  Acc* all_sums = reinterpret_cast<Acc*>(stages + warps * tiles.stage_bytes);
  // Channels-last: a thread's sums lie blockDim.x apart, so a warp never meets a bank conflict.
  const int32_t cell_stride = kChannelsLast ? threads : 1;
  Acc* sums = all_sums + threadIdx.x * (kChannelsLast ? 1 : tiles.sums_stride);
  for (int32_t i = 0; i < tile.cells; ++i) sums[i * cell_stride] = 0;

  for (int64_t first = 0; first < boxes.count; first += kBoxesPerThread * threads) {
    list_boxes(hits, boxes, first, tile);
    for (int32_t word = 0; word < kBoxesPerThread * warps; ++word)
      for (uint32_t mask = hits[word]; mask != 0; mask &= mask - 1) {
        const int64_t k = first + word * kWarpSize + __ffs(static_cast<int>(mask)) - 1;
        add_box<kChannelsLast>(sums, cell_stride, stage, grad_output, winners, boxes, k, channels, own, tile);
      }
  }

  if (kChannelsLast) {
    if (!own.has_own()) return;
    T* to = grad_input + (tile.image * cells + tile.begin) * channels + own.first + own.lane;
    for (int32_t i = 0; i < tile.cells; ++i) to[i * channels] = narrow<T>(sums[i * cell_stride]);
  } else {
    __syncwarp();
    const Acc* warp_sums = all_sums + warp * kWarpSize * tiles.sums_stride;
    T* to = grad_input + (tile.image * channels + own.first) * cells + tile.begin;
    // Whole planes of several channels are one run of memory, so a vector may span two of them.
    constexpr int kVec = kVectorSize<T>;
    if (tile.cells == cells && is_vector_aligned(to) && own.count * tile.cells % kVec == 0)
      store_planes<T, kVec>(to, cells, warp_sums, tiles.sums_stride, own.count, tile.cells, own.lane);
    else
      store_planes<T, 1>(to, cells, warp_sums, tiles.sums_stride, own.count, tile.cells, own.lane);
  }
}

// --- launchers -------------------------------------------------------------------------------------------------

// Blocks that keep every multiprocessor busy: below this, work is cut more finely.
int64_t busy_blocks() { return 4 * static_cast<int64_t>(device_attribute(cudaDevAttrMultiProcessorCount)); }

// Kernels count the elements of one box in 32 bits.
void check_arguments(const TensorView& map, const TensorView& pooled, const TensorView& winner, const TensorView& boxes,
                     bool needs_winner) {
  check_roi_pool(map, pooled, winner, boxes, needs_winner);
  if (map.shape[1] * pooled.shape[2] * pooled.shape[3] > std::numeric_limits<int32_t>::max())
    throw ValueError(std::string(pooled.name) + ": expected fewer than 2^31 elements a box, got " +
                     pooled.shape_string());
}

Boxes read_boxes(const TensorView& map, const TensorView& pooled, const TensorView& boxes, double spatial_scale) {
  return {boxes.data,
          boxes.dtype == Dtype::kFloat64,
          spatial_scale,
          boxes.shape[0],
          map.shape[0],
          static_cast<int32_t>(map.shape[2]),
          static_cast<int32_t>(map.shape[3]),
          static_cast<int32_t>(pooled.shape[2]),
          static_cast<int32_t>(pooled.shape[3])};
}

template <typename T>
void forward_contiguous(T* output, const Winners& winners, const T* input, const Boxes& boxes, int64_t channels,
                        void* stream) {
  constexpr int32_t kThreads = 256;
  constexpr int32_t kMaxGroup = 32;
  constexpr int32_t kMaxBoxes = 8;
  constexpr int32_t kAlign = kVectorSize<__half>;  // channels that keep a group 16-byte aligned in every dtype
  constexpr int64_t kStageBytes = 32 * 1024;

  const int64_t plane_bytes = boxes.cells() * static_cast<int64_t>(sizeof(T));
  int64_t group = std::min<int64_t>({kMaxGroup, channels, kStageBytes / plane_bytes});
  const bool staged = group >= std::min<int64_t>(kAlign, channels);
  if (!staged) group = std::min<int64_t>(kMaxGroup, channels);
  if (group > kAlign) group -= group % kAlign;

  const int64_t groups = ceil_div(channels, group);
  // More boxes a block read each plane from global memory fewer times.
  const int64_t boxes_per_block = staged ? std::clamp<int64_t>(boxes.count * groups / busy_blocks(), 1, kMaxBoxes) : 1;
  const int32_t columns = std::min(boxes.bins(), kThreads);
  const dim3 block(columns, std::min<int64_t>(kThreads / columns, group));
  const char* name = "roi_pool_forward_kernel";
  const dim3 grid = grid_of(groups * ceil_div(boxes.count, boxes_per_block), name);
  const auto kernel = staged ? roi_pool_forward_kernel<T, true> : roi_pool_forward_kernel<T, false>;
  launch(name, kernel, grid, block, staged ? group * plane_bytes : 0, stream, output, winners, input, boxes, channels,
         group, boxes_per_block);
}

template <typename T>
void forward_channels_last(T* output, const Winners& winners, const T* input, const Boxes& boxes, int64_t channels,
                           void* stream) {
  constexpr int32_t kThreads = 256;
  constexpr int kVec = kVectorSize<T>;
  const bool vectors =
      channels % kVec == 0 && is_vector_aligned(input) && is_vector_aligned(output) && is_vector_aligned(winners.data);
  const int64_t blocks_per_box = ceil_div(boxes.bins() * (vectors ? channels / kVec : channels), kThreads);
  const char* name = "roi_pool_forward_channels_last_kernel";
  const auto kernel =
      vectors ? roi_pool_forward_channels_last_kernel<T, kVec> : roi_pool_forward_channels_last_kernel<T, 1>;
  launch(name, kernel, grid_of(boxes.count * blocks_per_box, name), dim3(kThreads), 0, stream, output, winners, input,
         boxes, channels, blocks_per_box);
}

// Tiles as large as shared memory allows, then smaller ones while multiprocessors would be idle: rows of the map
// divide the work almost evenly, since a block skips the bins that its rows cannot win.
template <typename T>
void backward(T* grad_input, const T* grad_output, const Winners& winners, const Boxes& boxes, int64_t channels,
              bool channels_last, void* stream) {
  constexpr int64_t kSumBytes = 1024;   // of one channel's sums
  constexpr int64_t kStageBytes = 384;  // of one channel's gradients and winners
  constexpr int64_t kMaxWarps = 4;
  constexpr int64_t kMaxSharedBytes = 112 * 1024;  // two blocks share a multiprocessor of the largest cards
  constexpr int64_t kSum = sizeof(Accumulator<T>);

  const int64_t cells = boxes.cells();
  int64_t tile = std::min(cells, kSumBytes / kSum);
  if (tile > boxes.width) tile -= tile % boxes.width;
  const auto blocks = [&](int64_t warps) {
    return boxes.images * ceil_div(cells, tile) * ceil_div(channels, warps * kWarpSize);
  };
  while (blocks(1) < busy_blocks() && tile > boxes.width) tile = ceil_div(tile / boxes.width, 2) * boxes.width;

  int64_t stage_bytes = boxes.bins() * (static_cast<int64_t>(sizeof(T)) + winners.size());
  if (channels_last || stage_bytes > kStageBytes) stage_bytes = 0;
  const int64_t sums_stride = channels_last ? tile : tile | 1;  // odd: channels meet in different banks
  const auto shared_bytes = [&](int64_t warps) {
    return warps *
           (kBoxesPerThread * static_cast<int64_t>(sizeof(uint32_t)) + kWarpSize * (stage_bytes + sums_stride * kSum));
  };
  const int64_t limit = std::min<int64_t>(kMaxSharedBytes, device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  // Warps of a block share the search for the image's boxes.
  int64_t warps = std::min(kMaxWarps, ceil_div(channels, kWarpSize));
  while (warps > 1 && (shared_bytes(warps) > limit || blocks(warps) < busy_blocks())) --warps;

  const char* name = "roi_pool_backward_kernel";
  const BackwardTiles tiles = {static_cast<int32_t>(tile), static_cast<int32_t>(sums_stride),
                               static_cast<int32_t>(kWarpSize * stage_bytes)};
  const auto kernel = channels_last ? roi_pool_backward_kernel<T, true> : roi_pool_backward_kernel<T, false>;
  launch(name, kernel, grid_of(blocks(warps), name), dim3(static_cast<unsigned>(warps * kWarpSize)),
         shared_bytes(warps), stream, grad_input, grad_output, winners, boxes, channels, tiles);
}

}  // namespace

void roi_pool_forward_cuda(const TensorView& output, const TensorView& winner, const TensorView& input,
                           const TensorView& boxes, double spatial_scale, void* stream) {
  check_arguments(input, output, winner, boxes, false);
  const DeviceGuard guard(input);
  if (output.numel() == 0) return;
  const Boxes list = read_boxes(input, output, boxes, spatial_scale);
  const Winners winners = {winner.numel() == 0 ? nullptr : winner.data, winner.dtype};
  dispatch_float_or_half<__half, __nv_bfloat16>(input, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto run = input.is_contiguous() ? forward_contiguous<T> : forward_channels_last<T>;
    run(output.ptr<T>(), winners, input.ptr<T>(), list, input.shape[1], stream);
  });
}

void roi_pool_backward_cuda(const TensorView& grad_input, const TensorView& grad_output, const TensorView& winner,
                            const TensorView& boxes, double spatial_scale, void* stream) {
  check_arguments(grad_input, grad_output, winner, boxes, true);
  const DeviceGuard guard(grad_input);
  if (grad_input.numel() == 0) return;
  const Boxes list = read_boxes(grad_input, grad_output, boxes, spatial_scale);
  const Winners winners = {winner.data, winner.dtype};
  dispatch_float_or_half<__half, __nv_bfloat16>(grad_input, [&](auto tag) {
    using T = typename decltype(tag)::type;
    backward(grad_input.ptr<T>(), grad_output.ptr<T>(), winners, list, grad_input.shape[1], !grad_input.is_contiguous(),
             stream);
  });
}

}  // namespace avfast
