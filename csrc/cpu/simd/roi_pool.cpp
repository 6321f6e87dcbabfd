// RoI max pooling of one tile, with SIMD over channels.
//
// Channels are the vector lanes, so that bins of any shape cost the same code. A contiguous map is first transposed,
// window by window, to [cells, block] in the accumulation type; pooled bins are transposed back on their way out. A
// channels_last map of floats is read in place.
#include <type_traits>

#include "cpu/half.h"
#include "cpu/simd/vec.h"
#include "roi_pool_bins.h"

namespace avfast::AVFAST_ISA {
namespace {

constexpr int kVectors = 4;
template <typename A>
constexpr int kBlock = kVectors * kLanes<A>;

// The memory that bins are read from: cell (h, w) of the map at base + (h - top) * row + (w - left) * cell.
template <typename A>
struct Cells {
  const A* base;
  int64_t row, cell;
  int64_t top, left;

  const A* at(int64_t h, int64_t w) const { return base + (h - top) * row + (w - left) * cell; }
};

// --- staging: cells [first, first + count) of the tile's channels -> out [count, block] --------------------------

template <typename T>
AVFAST_INLINE Acc<T> widen_one(const T* x) {
  return load_part(x, 1, Acc<T>(0))[0];
}

template <typename T>
void stage_transposed(const RoiPoolTile<T>& tile, int64_t first, int64_t count, Acc<T>* out) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>, B = kBlock<A>;
  const T* from = tile.input + first;
  for (int64_t group = 0; group < tile.channels; group += L) {
    const T* channel[L];  // lanes past the last channel repeat it
    for (int i = 0; i < L; ++i) {
      const int64_t c = group + i < tile.channels ? group + i : tile.channels - 1;
      channel[i] = from + c * tile.channel_stride;
    }
    if (count < L) {
      for (int64_t cell = 0; cell < count; ++cell)
        for (int i = 0; i < L; ++i) out[cell * B + group + i] = widen_one(channel[i] + cell);
      continue;
    }
    for (int64_t next = 0; next < count; next += L) {
      const int64_t cell = next + L <= count ? next : count - L;  // the last square overlaps its neighbour
      Vec<A> square[L];
      for (int i = 0; i < L; ++i) square[i] = load(channel[i] + cell);
      transpose(square);
      for (int i = 0; i < L; ++i) store(out + (cell + i) * B + group, square[i]);
    }
  }
}

template <typename T>
void stage_copied(const RoiPoolTile<T>& tile, int64_t first, int64_t count, Acc<T>* out) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>, B = kBlock<A>;
  for (int64_t cell = 0; cell < count; ++cell) {
    const T* from = tile.input + (first + cell) * tile.cell_stride;
    for (int64_t c = 0; c < tile.channels; c += L) {
      const int64_t left = tile.channels - c;
      store(out + cell * B + c, left >= L ? load(from + c) : load_part(from + c, left, A(0)));
    }
  }
}

template <typename T>
Cells<Acc<T>> stage(const RoiPoolTile<T>& tile, const Window& window, Acc<T>* out) {
  constexpr int B = kBlock<Acc<T>>;
  const bool whole_rows = window.width() == tile.width;
  const int64_t runs = whole_rows ? 1 : window.bottom - window.top;
  const int64_t length = window.cells() / runs;
  for (int64_t run = 0; run < runs; ++run) {
    const int64_t first = (window.top + run) * tile.width + window.left;
    if (tile.channels_last)
      stage_copied(tile, first, length, out + run * length * B);
    else
      stage_transposed(tile, first, length, out + run * length * B);
  }
  return {out, window.width() * B, B, window.top, window.left};
}

// --- pooling: the bins of a box -> values, winners [bins, block] -------------------------------------------------

// A lane whose maximum is -inf saw nothing greater: all of its cells are -inf or NaN. Scalar, and rare.
template <typename A>
void settle_lane(const Cells<A>& cells, int64_t lane, BinRange rows, BinRange columns, int64_t width, A* value,
                 MaskInt<A>* winner) {
  for (int64_t h = rows.begin; h < rows.end; ++h)
    for (int64_t w = columns.begin; w < columns.end; ++w) {
      const A x = cells.at(h, w)[lane];
      if (x != x) continue;
      *value = x;
      if (winner != nullptr) *winner = static_cast<MaskInt<A>>(h * width + w);
      return;
    }
  *value = cells.at(rows.begin, columns.begin)[lane];  // NaN
}

template <typename A, bool kWinner>
AVFAST_INLINE void pool_bin(const Cells<A>& cells, BinRange rows, BinRange columns, int64_t width, A* values,
                            MaskInt<A>* winners) {
  constexpr int L = kLanes<A>;
  const Vec<A> lowest = splat(static_cast<A>(-__builtin_inf()));
  Vec<A> best[kVectors];
  Mask<A> winner[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    best[v] = lowest;
    winner[v] = splat_int<A>(static_cast<MaskInt<A>>(rows.begin * width + columns.begin));
  }
  for (int64_t h = rows.begin; h < rows.end; ++h) {
    const A* from = cells.at(h, columns.begin);
    Mask<A> cell = splat_int<A>(static_cast<MaskInt<A>>(h * width + columns.begin));
    for (int64_t w = columns.begin; w < columns.end; ++w, from += cells.cell, cell += 1)
      for (int v = 0; v < kVectors; ++v) {
        const Vec<A> x = load(from + v * L);
        const Mask<A> greater = x > best[v];
        best[v] = greater ? x : best[v];
        if constexpr (kWinner) winner[v] = greater ? cell : winner[v];
      }
  }
  Mask<A> unsettled{};
  for (int v = 0; v < kVectors; ++v) {
    store(values + v * L, best[v]);
    if constexpr (kWinner) std::memcpy(winners + v * L, &winner[v], sizeof(Mask<A>));
    unsettled |= best[v] == lowest;
  }
  if (!any(unsettled)) return;
  for (int64_t lane = 0; lane < kBlock<A>; ++lane)
    if (values[lane] == lowest[0])
      settle_lane(cells, lane, rows, columns, width, values + lane, kWinner ? winners + lane : nullptr);
}

template <typename A, bool kWinner>
void pool_box(const Cells<A>& cells, const BinRange* rows, int64_t pooled_h, const BinRange* columns, int64_t pooled_w,
              int64_t width, MaskInt<A> nothing, A* values, MaskInt<A>* winners) {
  constexpr int B = kBlock<A>;
  for (int64_t ph = 0; ph < pooled_h; ++ph)
    for (int64_t pw = 0; pw < pooled_w; ++pw, values += B, winners += kWinner ? B : 0) {
      if (rows[ph].end > rows[ph].begin && columns[pw].end > columns[pw].begin) {
        pool_bin<A, kWinner>(cells, rows[ph], columns[pw], width, values, winners);
        continue;
      }
      for (int i = 0; i < B; ++i) values[i] = 0;
      if constexpr (kWinner)
        for (int i = 0; i < B; ++i) winners[i] = nothing;
    }
}

// --- writing: [bins, block] -> the output's memory format ----------------------------------------------------------

// Values stored as T, winners as the integer T.
template <typename T, typename V>
AVFAST_INLINE void emit(T* to, V x) {
  if constexpr (std::is_integral_v<T>) {
    typedef T Narrow __attribute__((vector_size(sizeof(T) * sizeof(V) / sizeof(x[0]))));
    const Narrow narrowed = __builtin_convertvector(x, Narrow);
    std::memcpy(to, &narrowed, sizeof(narrowed));
  } else {
    store(to, x);
  }
}

template <typename T, typename V, typename E>
void write_rows(const E* from, int64_t block, int64_t bins, int64_t channels, int64_t stride, T* to) {
  constexpr int L = sizeof(V) / sizeof(E);
  for (int64_t bin = 0; bin < bins; ++bin)
    for (int64_t c = 0; c < channels; c += L) {
      V x;
      std::memcpy(&x, from + bin * block + c, sizeof(x));
      if (channels - c >= L) {
        emit(to + bin * stride + c, x);
      } else {
        T part[L];
        emit(part, x);
        for (int64_t i = 0; i < channels - c; ++i) to[bin * stride + c + i] = part[i];
      }
    }
}

template <typename T, typename V, typename E>
void write_transposed(const E* from, int64_t block, int64_t bins, int64_t channels, T* to) {
  constexpr int L = sizeof(V) / sizeof(E);
  for (int64_t group = 0; group < channels; group += L) {
    const int64_t count = channels - group < L ? channels - group : L;
    for (int64_t next = 0; next < bins; next += L) {
      const int64_t bin = next + L <= bins ? next : bins < L ? 0 : bins - L;  // the last square overlaps
      const int64_t width = bins < L ? bins : L;
      V square[L] = {};
      for (int i = 0; i < width; ++i) std::memcpy(&square[i], from + (bin + i) * block + group, sizeof(V));
      transpose(square);
      for (int64_t i = 0; i < count; ++i) {
        T* row = to + (group + i) * bins + bin;
        if (width == L) {
          emit(row, square[i]);
        } else {
          T part[L];
          emit(part, square[i]);
          for (int64_t j = 0; j < width; ++j) row[j] = part[j];
        }
      }
    }
  }
}

template <typename E, typename V, typename T, typename Tile>
void write_box(const Tile& tile, const E* from, int64_t bins, int64_t box, T* to) {
  constexpr int64_t block = kVectors * sizeof(V) / sizeof(E);
  to += box * tile.all_channels * bins;
  if (tile.channels_last)
    write_rows<T, V>(from, block, bins, tile.channels, tile.all_channels, to);
  else
    write_transposed<T, V>(from, block, bins, tile.channels, to);
}

// --- tiles -----------------------------------------------------------------------------------------------------------

Window box_window(const BinRange* rows, int64_t pooled_h, const BinRange* columns, int64_t pooled_w) {
  return {rows[0].begin, rows[pooled_h - 1].end, columns[0].begin, columns[pooled_w - 1].end};
}

int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <typename T>
int64_t scratch_bytes(int64_t window_cells, int64_t bins) {
  using A = Acc<T>;
  return round_up(window_cells * kBlock<A> * sizeof(A)) + 2 * round_up(bins * kBlock<A> * sizeof(A));
}

template <typename T>
void forward(const RoiPoolTile<T>& tile) {
  using A = Acc<T>;
  const int64_t bins = tile.pooled_h * tile.pooled_w;
  A* values = reinterpret_cast<A*>(tile.scratch);
  auto* winners = reinterpret_cast<MaskInt<A>*>(tile.scratch + round_up(bins * kBlock<A> * sizeof(A)));
  A* staged = reinterpret_cast<A*>(tile.scratch + 2 * round_up(bins * kBlock<A> * sizeof(A)));
  const bool in_place = tile.channels_last && tile.channels == kBlock<A> && sizeof(T) == sizeof(A);
  Cells<A> cells{};
  if (in_place)
    cells = {reinterpret_cast<const A*>(tile.input), tile.width * tile.cell_stride, tile.cell_stride, 0, 0};
  else if (tile.window.cells() != 0)
    cells = stage(tile, tile.window, staged);
  const MaskInt<A> nothing = tile.winner_bytes == 1 ? 0xff : tile.winner_bytes == 2 ? 0xffff : 0x7fffffff;

  for (int64_t i = 0; i < tile.box_count; ++i) {
    const int64_t box = tile.boxes[i];
    const BinRange* rows = tile.bins + box * (tile.pooled_h + tile.pooled_w);
    const BinRange* columns = rows + tile.pooled_h;
    const Window window = box_window(rows, tile.pooled_h, columns, tile.pooled_w);
    if (!in_place && tile.window.cells() == 0 && window.cells() != 0) cells = stage(tile, window, staged);
    if (tile.winner != nullptr)
      pool_box<A, true>(cells, rows, tile.pooled_h, columns, tile.pooled_w, tile.width, nothing, values, winners);
    else
      pool_box<A, false>(cells, rows, tile.pooled_h, columns, tile.pooled_w, tile.width, nothing, values, winners);
    write_box<A, Vec<A>>(tile, values, bins, box, tile.output);
    if (tile.winner == nullptr) continue;
    if (tile.winner_bytes == 1)
      write_box<MaskInt<A>, Mask<A>>(tile, winners, bins, box, static_cast<uint8_t*>(tile.winner));
    else if (tile.winner_bytes == 2)
      write_box<MaskInt<A>, Mask<A>>(tile, winners, bins, box, static_cast<uint16_t*>(tile.winner));
    else
      write_box<MaskInt<A>, Mask<A>>(tile, winners, bins, box, static_cast<int32_t*>(tile.winner));
  }
}

// --- gradients -------------------------------------------------------------------------------------------------------

// Sums are kept apart, [channels, cells] or [cells, channels], where grad_input is of a narrower type.
template <typename T>
int64_t gradient_scratch_bytes(int64_t channels, int64_t cells, int64_t bins) {
  if (sizeof(T) == sizeof(Acc<T>)) return 0;
  return round_up(channels * cells * sizeof(Acc<T>)) + round_up((bins * channels + kLanes<Acc<T>>)*sizeof(Acc<T>));
}

// sums[winner] += grads: `outer` runs of `inner` values. Run o, value i belongs to channel o of a contiguous tile and
// to channel i of a channels_last one.
template <typename A, typename W>
void scatter(const A* grads, int64_t grads_stride, const W* winners, int64_t winners_stride, int64_t outer,
             int64_t inner, int64_t outer_step, int64_t inner_step, int64_t cell_step, A* sums) {
  constexpr W kNothing = static_cast<W>(sizeof(W) == 4 ? 0x7fffffff : -1);
  for (int64_t o = 0; o < outer; ++o) {
    A* run = sums + o * outer_step;
    const A* grad = grads + o * grads_stride;
    const W* winner = winners + o * winners_stride;
    for (int64_t i = 0; i < inner; ++i)
      if (winner[i] != kNothing) run[winner[i] * cell_step + i * inner_step] += grad[i];
  }
}

template <typename T, typename W>
void backward_as(const RoiPoolGradientTile<T>& tile) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>;
  constexpr bool kApart = sizeof(T) != sizeof(A);
  const bool last = tile.channels_last;
  const int64_t outer = last ? tile.bins : tile.channels, inner = last ? tile.channels : tile.bins;
  const int64_t grads_stride = last ? tile.all_channels : tile.bins;
  const int64_t stride = last ? (kApart ? tile.channels : tile.all_channels) : tile.cells;  // of sums
  const int64_t runs = last ? tile.cells : tile.channels, length = last ? tile.channels : tile.cells;
  A* sums = kApart ? reinterpret_cast<A*>(tile.scratch) : reinterpret_cast<A*>(tile.grad_input);
  A* wide = reinterpret_cast<A*>(tile.scratch + round_up(tile.channels * tile.cells * sizeof(A)));
  for (int64_t run = 0; run < runs; ++run)
    for (int64_t i = 0; i < length; ++i) sums[run * stride + i] = 0;

  for (int64_t i = 0; i < tile.box_count; ++i) {
    const int64_t offset = tile.boxes[i] * tile.all_channels * tile.bins;
    const T* grads = tile.grad_output + offset;
    const W* winners = static_cast<const W*>(tile.winner) + offset;
    const A* values = reinterpret_cast<const A*>(grads);
    if constexpr (kApart) {
      for (int64_t o = 0; o < outer; ++o)
        for (int64_t j = 0; j < inner; j += L) {
          const T* from = grads + o * grads_stride + j;
          store(wide + o * inner + j, inner - j >= L ? load(from) : load_part(from, inner - j, A(0)));
        }
      values = wide;
    }
    scatter(values, kApart ? inner : grads_stride, winners, grads_stride, outer, inner, last ? 0 : stride, last ? 1 : 0,
            last ? stride : 1, sums);
  }

  if constexpr (kApart) {
    const int64_t out_stride = last ? tile.all_channels : tile.cells;
    for (int64_t run = 0; run < runs; ++run)
      for (int64_t i = 0; i < length; i += L) {
        const int64_t left = length - i;
        T* to = tile.grad_input + run * out_stride + i;
        const A* from = sums + run * stride + i;
        if (left >= L)
          store(to, load(from));
        else
          store_part(to, load_part(from, left, A(0)), left);
      }
  }
}

template <typename T>
void backward(const RoiPoolGradientTile<T>& tile) {
  if (tile.winner_bytes == 1)
    backward_as<T, uint8_t>(tile);
  else if (tile.winner_bytes == 2)
    backward_as<T, uint16_t>(tile);
  else
    backward_as<T, int32_t>(tile);
}

}  // namespace

template <typename T>
const RoiPoolKernels<T>* roi_pool_table() {
  static const RoiPoolKernels<T> table{kBlock<Acc<T>>, scratch_bytes<T>, forward<T>, gradient_scratch_bytes<T>,
                                       backward<T>};
  return &table;
}
template const RoiPoolKernels<double>* roi_pool_table<double>();
template const RoiPoolKernels<float>* roi_pool_table<float>();
template const RoiPoolKernels<Half>* roi_pool_table<Half>();
template const RoiPoolKernels<BFloat16>* roi_pool_table<BFloat16>();

}  // namespace avfast::AVFAST_ISA
