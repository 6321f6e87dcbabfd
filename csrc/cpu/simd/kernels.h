// The inner kernels of the CPU, compiled once per instruction set, and the choice among them at run time.
#pragma once

#include <cstdint>

namespace avfast {

struct Half;
struct BFloat16;
struct BinRange;

enum class Isa : uint8_t { kBaseline, kAvx2 };

const char* isa_name(Isa isa);
// Whether this build has kernels for `isa` and this machine runs them.
bool isa_available(Isa isa);
// The one in use: the widest available, until a test sets another.
Isa& active_isa();

// Cells [top, bottom) x [left, right) of a map.
struct Window {
  int32_t top, bottom, left, right;

  int64_t width() const { return right - left; }
  int64_t cells() const { return bottom > top && right > left ? int64_t{bottom - top} * (right - left) : 0; }
};

// One block of channels of one image, and the boxes on that image. Strides are in elements.
template <typename T>
struct RoiPoolTile {
  const T* input;                       // of the tile's first channel
  int64_t channels;                     // at most RoiPoolKernels::block
  int64_t channel_stride, cell_stride;  // of input
  int64_t width;                        // of the map
  const int64_t* boxes;                 // [box_count] which boxes
  int64_t box_count;
  const BinRange* bins;  // [K, pooled_h + pooled_w]
  int64_t pooled_h, pooled_w;
  bool channels_last;    // of output and winner
  int64_t all_channels;  // of output and winner
  T* output;             // [K, ...] of the tile's first channel
  void* winner;          // likewise, or null
  int winner_bytes;      // 1, 2 or 4
  Window window;         // of all the boxes; empty: each box is to be read by itself
  char* scratch;         // RoiPoolKernels::scratch_bytes
};

// Gradients of one block of channels of one image.
template <typename T>
struct RoiPoolGradientTile {
  T* grad_input;  // of the tile's first channel
  int64_t channels;
  int64_t cells;  // height * width
  bool channels_last;
  int64_t all_channels;
  const int64_t* boxes;  // [box_count] in the order of the sum
  int64_t box_count;
  int64_t bins;          // pooled_h * pooled_w
  const T* grad_output;  // [K, ...] of the tile's first channel
  const void* winner;
  int winner_bytes;
  char* scratch;  // RoiPoolKernels::gradient_scratch_bytes
};

template <typename T>
struct RoiPoolKernels {
  int64_t block;  // channels of a forward tile
  int64_t (*scratch_bytes)(int64_t window_cells, int64_t bins);
  void (*forward)(const RoiPoolTile<T>&);
  int64_t (*gradient_scratch_bytes)(int64_t channels, int64_t cells, int64_t bins);
  void (*backward)(const RoiPoolGradientTile<T>&);
};

// Bags of instances [rows, classes], contiguous; A is the type that sums are taken in.
template <typename T, typename A>
struct MilKernels {
  // Peak of x = r * logits, total of exp(x - peak), and, with scores, their sum weighted by it; each [classes].
  void (*forward)(const T* logits, const T* scores, A r, int64_t rows, int64_t classes, A* peak, A* total, A* sum);
  // The same from `parts` such results of parts of a bag, each [parts, classes].
  void (*merge)(int64_t parts, int64_t classes, const A* peaks, const A* totals, const A* sums, A* peak, A* total,
                A* sum);
  // scale[c] * exp(x - peak) -> grad_scores and, with grad_logits, (scores - output) times it -> grad_logits.
  void (*backward)(const T* logits, const T* scores, A r, int64_t rows, int64_t classes, const A* scale, const A* peak,
                   const A* output, T* grad_scores, T* grad_logits);
};

// The first and last pixels of edge groups, [count] each.
struct GroupSpans {
  const int32_t *left, *right, *top, *bottom;
  const float* magnitude;
  int count;
};

// Three places for each side of a box, from the outermost inwards.
struct BoxPlaces {
  int32_t left[3], right[3], top[3], bottom[3];
};

struct EdgeBoxesKernels {
  // mass[3 * l + r][4 * (t + 1) + b + 1]: of the groups wholly inside the box of these places; the rest of `mass` is
  // without meaning.
  void (*inside)(const GroupSpans& groups, const BoxPlaces& at, float (&mass)[9][16]);
};

// Kernels of the active instruction set, for double, float, Half and BFloat16.
template <typename T>
const RoiPoolKernels<T>& roi_pool_kernels();
template <typename T, typename A>
const MilKernels<T, A>& mil_kernels();
const EdgeBoxesKernels& edge_boxes_kernels();

#define AVFAST_DECLARE_ISA(isa)               \
  namespace isa {                             \
  template <typename T>                       \
  const RoiPoolKernels<T>* roi_pool_table();  \
  template <typename T, typename A>           \
  const MilKernels<T, A>* mil_table();        \
  const EdgeBoxesKernels* edge_boxes_table(); \
  }
AVFAST_DECLARE_ISA(baseline)
AVFAST_DECLARE_ISA(avx2)
#undef AVFAST_DECLARE_ISA

}  // namespace avfast
