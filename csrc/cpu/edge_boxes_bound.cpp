// Bounds from the groups that lie wholly inside the largest of a set of boxes.
#include "edge_boxes_bound.h"

#include <cstring>

namespace avfast::edge_boxes {

Span::Span(int start, int end, int reach, int length) {
  const auto clip = [length](int value) { return std::clamp(value, 0, length - 1); };
  outer_start = clip(start - reach);
  outer_end = clip(end + reach);
  const int inner_start = clip(start + reach), inner_end = clip(end - reach);
  middle_first = middle_begin(inner_start, outer_end);
  // Rounding down can take one pixel more from the end of a longer side.
  middle_last = middle_end(outer_start, inner_end) - (reach == 0 ? 0 : 1);
  half = inner_end > inner_start ? (inner_end - inner_start) / 2 : 0;
}

Bounds::Places::Places(int side, int step, int reach, int length) {
  for (int i = 0; i < 3; ++i) {
    place[i] = std::clamp(side + (i - 1) * step, 0, length - 1);
    outermost[i] = std::clamp(place[i] + (step > 0 ? -reach : reach), 0, length - 1);
  }
}

namespace {

// How many of the outermost places of each side each group lies within, as an offset into Bounds::inside_. Built
// for two instruction sets where the loader can choose between them.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
__attribute__((target_clones("avx2", "default")))
#endif
void find_bins(const CellGroups& groups, int64_t begin, int64_t end, const int (&left)[3], const int (&right)[3],
               const int (&top)[3], const int (&bottom)[3], int32_t* __restrict bins) {
  const int32_t* __restrict group_left = groups.left.data();
  const int32_t* __restrict group_right = groups.right.data();
  const int32_t* __restrict group_top = groups.top.data();
  const int32_t* __restrict group_bottom = groups.bottom.data();
  const int l0 = left[0], l1 = left[1], l2 = left[2], r0 = right[0], r1 = right[1], r2 = right[2];
  const int t0 = top[0], t1 = top[1], t2 = top[2], b0 = bottom[0], b1 = bottom[1], b2 = bottom[2];
  for (int64_t i = begin; i < end; ++i) {
    const int32_t l = group_left[i], r = group_right[i], t = group_top[i], b = group_bottom[i];
    bins[i - begin] = 64 * ((l > l0) + (l > l1) + (l > l2)) + 16 * ((r < r0) + (r < r1) + (r < r2)) +
                      4 * ((t > t0) + (t > t1) + (t > t2)) + ((b < b0) + (b < b1) + (b < b2));
  }
}

}  // namespace

void Bounds::sort_groups(const Places& left, const Places& right, const Places& top, const Places& bottom) {
  std::memset(inside_, 0, sizeof(inside_));
  float* sums = &inside_[0][0][0][0];
  const CellGroups& groups = maps_.cell_groups;
  constexpr int kChunk = 256;
  int32_t bins[kChunk];
  for (int cx = left.outermost[0] / kCell; cx <= right.outermost[0] / kCell; ++cx) {
    const int32_t* column = &groups.first[static_cast<int64_t>(cx) * groups.rows];
    const int64_t end = column[bottom.outermost[0] / kCell + 1];
    for (int64_t i = column[top.outermost[0] / kCell]; i < end; i += kChunk) {
      const int64_t chunk_end = std::min(i + kChunk, end);
      find_bins(groups, i, chunk_end, left.outermost, right.outermost, top.outermost, bottom.outermost, bins);
      for (int64_t g = i; g < chunk_end; ++g) sums[bins[g - i]] += groups.magnitude[g];
    }
  }
  // A group within the inner places is within the outer ones. Place 0 is outside all three and needs no sum.
  for (int place = 2; place > 0; --place)
    for (int i = 0; i < 64; ++i) (&inside_[place][0][0][0])[i] += (&inside_[place + 1][0][0][0])[i];
  for (int a = 1; a < 4; ++a)
    for (int place = 2; place > 0; --place)
      for (int i = 0; i < 16; ++i) (&inside_[a][place][0][0])[i] += (&inside_[a][place + 1][0][0])[i];
  for (int a = 1; a < 4; ++a) {
    for (int b = 1; b < 4; ++b) {
      for (int place = 2; place > 0; --place)
        for (int i = 0; i < 4; ++i) inside_[a][b][place][i] += inside_[a][b][place + 1][i];
      for (int c = 1; c < 4; ++c)
        for (int place = 2; place > 0; --place) inside_[a][b][c][place] += inside_[a][b][c][place + 1];
    }
  }
}

float Bounds::contained(const Box& box, Steps steps, float threshold) {
  const bool moves = steps.halve();
  const Steps rest = moves ? steps.reach() : Steps{}, step = moves ? steps : Steps{};
  const Places left(box.x, step.x, rest.x, maps_.width), right(box.x + box.w, -step.x, rest.x, maps_.width);
  const Places top(box.y, step.y, rest.y, maps_.height), bottom(box.y + box.h, -step.y, rest.y, maps_.height);
  sort_groups(left, right, top, bottom);
  const auto hull = [&](const std::vector<double>& integral) {
    return box_sum(integral, maps_.height + 1, left.outermost[0], top.outermost[0], right.outermost[0],
                   bottom.outermost[0]);
  };
  const auto slack =
      static_cast<float>(hull(maps_.noise) + 2 * maps_.relative_rounding * hull(maps_.ceiling) + maps_.corner_rounding);
  spans_.clear();
  for (int j = 0; j < 9; ++j) spans_.push_back(Span(top.place[j / 3], bottom.place[j % 3], rest.y, maps_.height));

  float best = threshold;
  for (int i = 0; i < 9; ++i) {
    const Span x(left.place[i / 3], right.place[i % 3], rest.x, maps_.width);
    for (int j = 0; j < 9; ++j) {
      const float inside = inside_[i / 3 + 1][i % 3 + 1][j / 3 + 1][j % 3 + 1] + slack;
      const float largest = norm(x, spans_[j]) * kRoundUp;
      if (inside * largest > best) best = std::max(best, (inside - middle(x, spans_[j])) * largest);
    }
  }
  return best;
}

}  // namespace avfast::edge_boxes
