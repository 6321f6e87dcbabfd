// Mass of the edge groups inside each of 81 boxes, three places to a side.
#include "cpu/simd/vec.h"

namespace avfast::AVFAST_ISA {
namespace {

constexpr int kChunk = 256;
constexpr int kInAll = 255;  // the bin of what lies within all places

// Of each group, how many of the places of each side it lies within, as base-4 digits.
void find_bins(const GroupSpans& groups, int begin, int count, const BoxPlaces& at, int32_t* __restrict bins) {
  const int32_t* __restrict left = groups.left + begin;
  const int32_t* __restrict right = groups.right + begin;
  const int32_t* __restrict top = groups.top + begin;
  const int32_t* __restrict bottom = groups.bottom + begin;
  const int32_t l0 = at.left[0], l1 = at.left[1], l2 = at.left[2], r0 = at.right[0], r1 = at.right[1];
  const int32_t r2 = at.right[2], t0 = at.top[0], t1 = at.top[1], t2 = at.top[2], b0 = at.bottom[0];
  const int32_t b1 = at.bottom[1], b2 = at.bottom[2];
  for (int i = 0; i < count; ++i) {
    const int32_t l = left[i], r = right[i], t = top[i], b = bottom[i];
    bins[i] = 64 * ((l >= l0) + (l >= l1) + (l >= l2)) + 16 * ((r <= r0) + (r <= r1) + (r <= r2)) +
              4 * ((t >= t0) + (t >= t1) + (t >= t2)) + ((b <= b0) + (b <= b1) + (b <= b2));
  }
}

// Adds what lies within more places to what lies within fewer.
void accumulate(float (&sums)[4][4][4][4]) {
  for (int place = 2; place > 0; --place)
    for (int i = 0; i < 64; ++i) (&sums[place][0][0][0])[i] += (&sums[place + 1][0][0][0])[i];
  for (int a = 1; a < 4; ++a)
    for (int place = 2; place > 0; --place)
      for (int i = 0; i < 16; ++i) (&sums[a][place][0][0])[i] += (&sums[a][place + 1][0][0])[i];
  for (int a = 1; a < 4; ++a) {
    for (int b = 1; b < 4; ++b) {
      float* rows = &sums[a][b][0][0];
      for (int i = 11; i >= 4; --i) rows[i] += rows[i + 4];
      for (int i = 4; i < 16; i += 4) {
        rows[i + 2] += rows[i + 3];
        rows[i + 1] += rows[i + 2];
      }
    }
  }
}

void inside(const GroupSpans& groups, const BoxPlaces& at, float (&mass)[9][16]) {
  float sums[4][4][4][4] = {};
  float* flat = &sums[0][0][0][0];
  int32_t bins[kChunk];
  float in_all = 0;
  for (int begin = 0; begin < groups.count; begin += kChunk) {
    const int count = groups.count - begin < kChunk ? groups.count - begin : kChunk;
    find_bins(groups, begin, count, at, bins);
    for (int i = 0; i < count; ++i) {
      // Most groups lie within all places: a sum in memory would make each wait for the one before.
      if (bins[i] == kInAll)
        in_all += groups.magnitude[begin + i];
      else
        flat[bins[i]] += groups.magnitude[begin + i];
    }
  }
  flat[kInAll] += in_all;
  accumulate(sums);
  for (int a = 0; a < 3; ++a)
    for (int b = 0; b < 3; ++b)
      for (int i = 0; i < 16; ++i) mass[3 * a + b][i] = (&sums[a + 1][b + 1][0][0])[i];
}

}  // namespace

const EdgeBoxesKernels* edge_boxes_table() {
  static const EdgeBoxesKernels table{inside};
  return &table;
}

}  // namespace avfast::AVFAST_ISA
