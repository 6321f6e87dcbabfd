// MIL aggregation on CUDA: one pass forward by online softmax, one element-wise pass backward.
#include <cmath>

#include "dispatch.h"
#include "launch.cuh"
#include "mil_aggregate_checks.h"
#include "scalar.cuh"

namespace avfast {
namespace {

constexpr int kThreads = 512;

// Rows [begin, end) of the instances; a row of a dense [B, P, C] is b * P + p.
struct Rows {
  int64_t begin, end;
};

// The bags: dense, `rows` = B * P of them in equal lengths, or ragged, cut by offsets [B + 1].
struct Bags : BagSizes {
  int64_t rows, dense_length;
  const int64_t* offsets;  // null for dense

  // Offsets cannot be checked without waiting for the device, so they are clamped: wrong ones give wrong
  // numbers, never a wrong address.
  __device__ Rows of(int64_t bag) const {
    if (offsets == nullptr) return {bag * dense_length, (bag + 1) * dense_length};
    const int64_t begin = clamp(offsets[bag]);
    return {begin, max(begin, clamp(offsets[bag + 1]))};
  }

  // The bag that holds `row`, where the offsets are in order.
  __device__ int64_t holding(int64_t row) const {
    if (offsets == nullptr) return row / dense_length;
    int64_t low = 0;
    int64_t high = count - 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (offsets[middle + 1] > row)
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }

  __device__ int64_t clamp(int64_t row) const { return min(max(row, int64_t{0}), rows); }
};

// Scores or logits, [B, P, C] or [N, C], in any strides.
template <typename T>
struct Instances {
  const T* data;
  int64_t bag_stride, row_stride, class_stride;

  // Row `row` of class `c` lies at column(...) + row * row_stride for the rows of `bag`.
  __device__ const T* column(const Bags& bags, int64_t bag, int64_t c) const {
    const int64_t first_row = bags.offsets == nullptr ? bag * bags.dense_length : 0;
    return data + bag * bag_stride - first_row * row_stride + c * class_stride;
  }
};

// [B, C] in any strides: a gradient that was expanded has stride 0.
template <typename T>
struct BagValues {
  const T* data;
  int64_t bag_stride, class_stride;

  __device__ const T& at(int64_t bag, int64_t c) const { return data[bag * bag_stride + c * class_stride]; }
};

// Of one (bag, class): the greatest logit, and the sums of exp(logit - peak) and of score * exp(logit - peak).
template <typename Acc>
struct Column {
  Acc peak, total, sum;

  // Online softmax (Milakov and Gimelshein, 2018) with one exponential per instance and no branch. The finite first
  // peak makes a logit of -inf weigh 0 from the start.
  __device__ static Column none() { return {kLowest<Acc>, 0, 0}; }

  __device__ void add(Acc logit, Acc score) {
    const Acc rise = logit - peak;
    const Acc factor = std::exp(-std::abs(rise));
    const bool rises = rise > 0;
    total = rises ? total * factor + 1 : total + factor;
    sum = rises ? sum * factor + score : sum + factor * score;
    peak = rises ? logit : peak;
  }

  __device__ void merge(const Column& other) {
    const Acc top = max(peak, other.peak);
    const Acc mine = std::exp(peak - top);
    const Acc theirs = std::exp(other.peak - top);
    total = total * mine + other.total * theirs;
    sum = sum * mine + other.sum * theirs;
    peak = top;
  }

  // A peak of +inf has no softmax: NaN, as in torch.
  __device__ void finish() { total += peak - peak; }
};

// The classes are cut into `count` tiles, one a block; `c` is the first class of this thread.
struct Tile {
  uint32_t count;
  int64_t c;

  template <int kVec>
  __device__ static Tile of(const Bags& bags) {
    const uint32_t width = blockDim.x * kVec;
    const uint32_t count = static_cast<uint32_t>((bags.classes + width - 1) / width);
    return {count, static_cast<int64_t>(blockIdx.x % count) * width + threadIdx.x * kVec};
  }
};

// Reduces the columns of all threadIdx.y to those of threadIdx.y = 0, in a fixed order.
template <typename Acc, int kVec>
__device__ void reduce_rows(Column<Acc> (&columns)[kVec]) {
  auto* shared = reinterpret_cast<Column<Acc>*>(shared_memory());
  const int32_t width = blockDim.x * kVec;
  Column<Acc>* own = shared + threadIdx.y * width + threadIdx.x;
  for (int j = 0; j < kVec; ++j) own[j * blockDim.x] = columns[j];
  for (uint32_t rows = blockDim.y; rows > 1;) {
    const uint32_t half = (rows + 1) / 2;
    __syncthreads();
    if (threadIdx.y + half < rows)
      for (int j = 0; j < kVec; ++j) own[j * blockDim.x].merge(own[half * width + j * blockDim.x]);
    rows = half;
  }
  for (int j = 0; j < kVec; ++j) columns[j] = own[j * blockDim.x];
}

// A block owns one bag in a tile of classes: threads side by side take neighbouring classes (kVec each), and rows of
// threads take turns over the instances. `visit(columns, row)` adds one instance to each of them.
template <typename Acc, int kVec, typename Visit>
__device__ bool reduce_bag(Column<Acc> (&columns)[kVec], const Bags& bags, int64_t bag, int64_t c, Visit&& visit) {
  for (int j = 0; j < kVec; ++j) columns[j] = Column<Acc>::none();
  const Rows rows = bags.of(bag);
  if (c < bags.classes) {
#pragma unroll 4
    for (int64_t row = rows.begin + threadIdx.y; row < rows.end; row += blockDim.y) visit(columns, row);
  }
  reduce_rows(columns);
  return threadIdx.y == 0 && c < bags.classes;
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads, 1)
    mil_aggregate_forward_kernel(T* output, Accumulator<T>* peak, Accumulator<T>* total, Instances<T> scores,
                                 Instances<T> logits, Bags bags) {
  using Acc = Accumulator<T>;
  const Tile tile = Tile::of<kVec>(bags);
  const int64_t bag = blockIdx.x / tile.count;
  const T* logit_column = logits.column(bags, bag, tile.c);
  const T* score_column = scores.column(bags, bag, tile.c);
  Column<Acc> columns[kVec];
  const bool writes = reduce_bag(columns, bags, bag, tile.c, [&](auto& into, int64_t row) {
    const auto logit = load_vector<kVec>(logit_column + row * logits.row_stride);
    const auto score = load_vector<kVec>(score_column + row * scores.row_stride);
    for (int j = 0; j < kVec; ++j) into[j].add(widen(logit.data[j]), widen(score.data[j]));
  });
  if (!writes) return;
  for (int j = 0; j < kVec; ++j) {
    columns[j].finish();
    const int64_t at = bag * bags.classes + tile.c + j;
    output[at] = narrow<T>(columns[j].total == 0 ? Acc(0) : columns[j].sum / columns[j].total);
    peak[at] = columns[j].peak;
    total[at] = columns[j].total;
  }
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads, 1)
    mil_logsumexp_forward_kernel(T* output, Accumulator<T>* peak, Accumulator<T>* total, Instances<T> scores, Bags bags,
                                 Accumulator<T> r) {
  using Acc = Accumulator<T>;
  const Tile tile = Tile::of<kVec>(bags);
  const int64_t bag = blockIdx.x / tile.count;
  const T* score_column = scores.column(bags, bag, tile.c);
  Column<Acc> columns[kVec];
  const bool writes = reduce_bag(columns, bags, bag, tile.c, [&](auto& into, int64_t row) {
    const auto score = load_vector<kVec>(score_column + row * scores.row_stride);
    for (int j = 0; j < kVec; ++j) into[j].add(r * widen(score.data[j]), Acc(0));
  });
  if (!writes) return;
  const Rows rows = bags.of(bag);
  const Acc length = static_cast<Acc>(rows.end - rows.begin);
  for (int j = 0; j < kVec; ++j) {
    columns[j].finish();
    const int64_t at = bag * bags.classes + tile.c + j;
    output[at] = narrow<T>(length == 0 ? Acc(0) : (columns[j].peak + std::log(columns[j].total / length)) / r);
    peak[at] = columns[j].peak;
    total[at] = columns[j].total;
  }
}

// --- backward --------------------------------------------------------------------------------------------------

constexpr int kRowsPerThread = 4;

// A thread walks rows of any bags in one class, so long and short bags share the blocks evenly. `enter(bag)` is called
// when the bag changes, -1 for a row of no bag (only offsets that are wrong leave one); `visit(row)` for each row.
template <typename Enter, typename Visit>
__device__ void for_each_row(const Bags& bags, uint32_t tiles, Enter&& enter, Visit&& visit) {
  const int64_t block_rows = static_cast<int64_t>(blockDim.y) * kRowsPerThread;
  const int64_t first = blockIdx.x / tiles * block_rows;
  const int64_t last = min(bags.rows, first + block_rows);
  int64_t bag = -1;
  Rows rows = {0, 0};
  for (int64_t row = first + threadIdx.y; row < last; row += blockDim.y) {
    if (row >= rows.end) {
      bag = bags.holding(row);
      rows = bags.of(bag);
      if (row < rows.begin || row >= rows.end) {
        bag = -1;
        rows = {row, row + 1};
      }
      enter(bag);
    }
    visit(row);
  }
}

// What backward needs of one (bag, class).
template <typename Acc>
struct Weighting {
  Acc peak, gradient, mean;  // gradient: of the output, over the total

  // A total of 0 marks an empty bag or one whose logits are all -inf.
  template <typename T>
  __device__ static Weighting load(int64_t bag, int64_t classes, int64_t c, const BagValues<T>& grad_output,
                                   const T* output, const Acc* peak, const Acc* total) {
    if (bag < 0) return {kInfinity<Acc>, 0, 0};
    const int64_t at = bag * classes + c;
    const Acc gradient = total[at] == 0 ? Acc(0) : widen(grad_output.at(bag, c)) / total[at];
    return {peak[at], gradient, output == nullptr ? Acc(0) : widen(output[at])};
  }

  __device__ Acc weigh(Acc logit) const { return gradient * std::exp(logit - peak); }
};

template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads, 1)
    mil_aggregate_backward_kernel(T* grad_scores, T* grad_logits, BagValues<T> grad_output, Instances<T> scores,
                                  Instances<T> logits, const T* output, const Accumulator<T>* peak,
                                  const Accumulator<T>* total, Bags bags) {
  const Tile tile = Tile::of<kVec>(bags);
  if (tile.c >= bags.classes) return;
  const T* logit_column = nullptr;
  const T* score_column = nullptr;
  Weighting<Accumulator<T>> weighting[kVec];
  const auto enter = [&](int64_t bag) {
    logit_column = logits.column(bags, max(bag, int64_t{0}), tile.c);
    score_column = scores.column(bags, max(bag, int64_t{0}), tile.c);
    for (int j = 0; j < kVec; ++j)
      weighting[j] = Weighting<Accumulator<T>>::load(bag, bags.classes, tile.c + j, grad_output, output, peak, total);
  };
  for_each_row(bags, tile.count, enter, [&](int64_t row) {
    const auto logit = load_vector<kVec>(logit_column + row * logits.row_stride);
    const auto score = load_vector<kVec>(score_column + row * scores.row_stride);
    Vector<T, kVec> to_score, to_logit;
    for (int j = 0; j < kVec; ++j) {
      const Accumulator<T> weighed = weighting[j].weigh(widen(logit.data[j]));
      to_score.data[j] = narrow<T>(weighed);
      to_logit.data[j] = narrow<T>(weighed * (widen(score.data[j]) - weighting[j].mean));
    }
    store_vector(grad_scores + row * bags.classes + tile.c, to_score);
    store_vector(grad_logits + row * bags.classes + tile.c, to_logit);
  });
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads, 1)
    mil_logsumexp_backward_kernel(T* grad_scores, BagValues<T> grad_output, Instances<T> scores,
                                  const Accumulator<T>* peak, const Accumulator<T>* total, Bags bags,
                                  Accumulator<T> r) {
  const Tile tile = Tile::of<kVec>(bags);
  if (tile.c >= bags.classes) return;
  const T* score_column = nullptr;
  Weighting<Accumulator<T>> weighting[kVec];
  const auto enter = [&](int64_t bag) {
    score_column = scores.column(bags, max(bag, int64_t{0}), tile.c);
    for (int j = 0; j < kVec; ++j)
      weighting[j] = Weighting<Accumulator<T>>::load(bag, bags.classes, tile.c + j, grad_output,
                                                     static_cast<const T*>(nullptr), peak, total);
  };
  for_each_row(bags, tile.count, enter, [&](int64_t row) {
    const auto score = load_vector<kVec>(score_column + row * scores.row_stride);
    Vector<T, kVec> to_score;
    for (int j = 0; j < kVec; ++j) to_score.data[j] = narrow<T>(weighting[j].weigh(r * widen(score.data[j])));
    store_vector(grad_scores + row * bags.classes + tile.c, to_score);
  });
}

// --- launchers -------------------------------------------------------------------------------------------------

Bags read_bags(const TensorView& x, const TensorView& offsets) {
  const BagSizes sizes = check_bags(x, offsets);
  if (offsets.numel() == 0) return {sizes, x.shape[0] * x.shape[1], x.shape[1], nullptr};
  if (sizes.count == 0 && x.shape[0] != 0)
    throw ValueError("offsets: expected bounds that end at " + std::to_string(x.shape[0]) +
                     ", the number of instances, got those of no bag");
  return {sizes, x.shape[0], 0, offsets.ptr<int64_t>()};
}

template <typename T>
Instances<T> instances(const TensorView& x) {
  const bool dense = x.ndim == 3;
  return {x.ptr<T>(), dense ? x.strides[0] : 0, x.strides[x.ndim - 2], x.strides[x.ndim - 1]};
}

template <typename T>
BagValues<T> bag_values(const TensorView& x) {
  return {x.ptr<T>(), x.strides[0], x.strides[1]};
}

// Whether 16-byte accesses reach every row of `x`.
bool has_vector_rows(const TensorView& x, int64_t vector_size) {
  const int last = x.ndim - 1;
  bool aligned = is_vector_aligned(x.data) && x.strides[last] == 1 && x.shape[last] % vector_size == 0;
  for (int d = 0; d < last; ++d) aligned = aligned && x.strides[d] % vector_size == 0;
  return aligned;
}

// Calls f(TypeTag<T>{}, std::integral_constant<int, kVec>{}): whole 16-byte accesses where all of `arguments` allow.
template <typename F>
void dispatch_vectors(const TensorView& scores, std::initializer_list<const TensorView*> arguments, F&& f) {
  dispatch_float_or_half<__half, __nv_bfloat16>(scores, [&](auto tag) {
    constexpr int kVec = kVectorSize<typename decltype(tag)::type>;
    for (const TensorView* x : arguments)
      if (!has_vector_rows(*x, kVec)) return f(tag, std::integral_constant<int, 1>{});
    f(tag, std::integral_constant<int, kVec>{});
  });
}

// Threads of a block: as many columns as a tile has classes (the tiles alike), and rows up to `threads`.
dim3 block_of(const Bags& bags, int vec, int threads, int64_t most_rows) {
  constexpr int64_t kMaxColumns = 64;
  const int64_t columns = bags.classes / vec;
  const int64_t width = ceil_div(columns, ceil_div(columns, kMaxColumns));
  const int64_t rows = std::clamp<int64_t>(threads / width, 1, std::max<int64_t>(most_rows, 1));
  return dim3(static_cast<unsigned>(width), static_cast<unsigned>(rows));
}

template <typename T, int kVec, typename... Params, typename... Args>
void launch_forward(const char* name, void (*kernel)(Params...), const Bags& bags, void* stream, const Args&... args) {
  const dim3 block = block_of(bags, kVec, kThreads, bags.offsets == nullptr ? bags.dense_length : bags.rows);
  const int64_t tiles = ceil_div(bags.classes, block.x * kVec);
  const size_t shared_bytes = block.x * block.y * kVec * sizeof(Column<Accumulator<T>>);
  launch(name, kernel, grid_of(bags.count * tiles, name), block, shared_bytes, stream, args...);
}

template <int kVec, typename... Params, typename... Args>
void launch_backward(const char* name, void (*kernel)(Params...), const Bags& bags, void* stream, const Args&... args) {
  const dim3 block = block_of(bags, kVec, kThreads / 2, bags.rows);
  const int64_t tiles = ceil_div(bags.classes, block.x * kVec);
  const int64_t chunks = ceil_div(bags.rows, block.y * kRowsPerThread);
  launch(name, kernel, grid_of(chunks * tiles, name), block, 0, stream, args...);
}

}  // namespace

void mil_aggregate_forward_cuda(const TensorView& output, const TensorView& peak, const TensorView& total,
                                const TensorView& scores, const TensorView& logits, const TensorView& offsets,
                                void* stream) {
  const Bags bags = read_bags(scores, offsets);
  check_instances(logits, scores);
  check_contiguous_bag_values(output, bags, scores);
  check_statistic(peak, bags, scores);
  check_statistic(total, bags, scores);
  const DeviceGuard guard(scores);
  if (output.numel() == 0) return;
  dispatch_vectors(scores, {&scores, &logits}, [&](auto tag, auto vec) {
    using T = typename decltype(tag)::type;
    using Acc = Accumulator<T>;
    launch_forward<T, vec.value>("mil_aggregate_forward_kernel", mil_aggregate_forward_kernel<T, vec.value>, bags,
                                 stream, output.ptr<T>(), peak.ptr<Acc>(), total.ptr<Acc>(), instances<T>(scores),
                                 instances<T>(logits), bags);
  });
}

void mil_aggregate_backward_cuda(const TensorView& grad_scores, const TensorView& grad_logits,
                                 const TensorView& grad_output, const TensorView& scores, const TensorView& logits,
                                 const TensorView& output, const TensorView& peak, const TensorView& total,
                                 const TensorView& offsets, void* stream) {
  const Bags bags = read_bags(scores, offsets);
  check_instances(logits, scores);
  check_contiguous_instances(grad_scores, scores);
  check_contiguous_instances(grad_logits, scores);
  check_bag_values(grad_output, bags, scores);
  check_contiguous_bag_values(output, bags, scores);
  check_statistic(peak, bags, scores);
  check_statistic(total, bags, scores);
  const DeviceGuard guard(scores);
  if (scores.numel() == 0) return;
  dispatch_vectors(scores, {&scores, &logits, &grad_scores, &grad_logits}, [&](auto tag, auto vec) {
    using T = typename decltype(tag)::type;
    using Acc = Accumulator<T>;
    launch_backward<vec.value>("mil_aggregate_backward_kernel", mil_aggregate_backward_kernel<T, vec.value>, bags,
                               stream, grad_scores.ptr<T>(), grad_logits.ptr<T>(), bag_values<T>(grad_output),
                               instances<T>(scores), instances<T>(logits), output.ptr<T>(), peak.ptr<Acc>(),
                               total.ptr<Acc>(), bags);
  });
}

void mil_logsumexp_forward_cuda(const TensorView& output, const TensorView& peak, const TensorView& total,
                                const TensorView& scores, const TensorView& offsets, double r, void* stream) {
  const Bags bags = read_bags(scores, offsets);
  check_contiguous_bag_values(output, bags, scores);
  check_statistic(peak, bags, scores);
  check_statistic(total, bags, scores);
  const DeviceGuard guard(scores);
  if (output.numel() == 0) return;
  dispatch_vectors(scores, {&scores}, [&](auto tag, auto vec) {
    using T = typename decltype(tag)::type;
    using Acc = Accumulator<T>;
    launch_forward<T, vec.value>("mil_logsumexp_forward_kernel", mil_logsumexp_forward_kernel<T, vec.value>, bags,
                                 stream, output.ptr<T>(), peak.ptr<Acc>(), total.ptr<Acc>(), instances<T>(scores), bags,
                                 static_cast<Acc>(r));
  });
}

void mil_logsumexp_backward_cuda(const TensorView& grad_scores, const TensorView& grad_output, const TensorView& scores,
                                 const TensorView& peak, const TensorView& total, const TensorView& offsets, double r,
                                 void* stream) {
  const Bags bags = read_bags(scores, offsets);
  check_contiguous_instances(grad_scores, scores);
  check_bag_values(grad_output, bags, scores);
  check_statistic(peak, bags, scores);
  check_statistic(total, bags, scores);
  const DeviceGuard guard(scores);
  if (scores.numel() == 0) return;
  dispatch_vectors(scores, {&scores, &grad_scores}, [&](auto tag, auto vec) {
    using T = typename decltype(tag)::type;
    using Acc = Accumulator<T>;
    launch_backward<vec.value>("mil_logsumexp_backward_kernel", mil_logsumexp_backward_kernel<T, vec.value>, bags,
                               stream, grad_scores.ptr<T>(), bag_values<T>(grad_output), instances<T>(scores),
                               peak.ptr<Acc>(), total.ptr<Acc>(), bags, static_cast<Acc>(r));
  });
}

}  // namespace avfast
