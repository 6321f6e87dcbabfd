// Bounds from the groups that lie wholly inside the largest of a set of boxes.
#include "edge_boxes_bound.h"

namespace avfast::edge_boxes {

Span::Span(int outer_start, int outer_end, int inner_start, int inner_end)
    : outer_start(outer_start), outer_end(outer_end) {
  const bool single = outer_start == inner_start && outer_end == inner_end;
  middle_first = middle_begin(inner_start, outer_end);
  // Rounding down can take one pixel more from the end of a longer side.
  middle_last = middle_end(outer_start, inner_end) - (single ? 0 : 1);
  half = inner_end > inner_start ? (inner_end - inner_start) / 2 : 0;
}

Span Span::around(int start, int end, int reach, int length) {
  const auto clip = [length](int value) { return std::clamp(value, 0, length - 1); };
  return {clip(start - reach), clip(end + reach), clip(start + reach), clip(end - reach)};
}

Bounds::Bounds(const ScoreMaps& maps)
    : maps_(maps),
      above_(maps.height + 1),
      below_(maps.height + 1),
      left_(maps.groups.count()),
      right_(left_),
      top_(left_),
      bottom_(left_),
      magnitude_(maps.groups.count()) {}

void Bounds::column(const Span& x, const std::vector<Span>& rows, float* bounds) {
  int height = maps_.height;
  for (const Span& y : rows) height = std::min(height, y.outer_end - y.outer_start);
  std::fill(above_.begin(), above_.end(), 0.0);
  std::fill(below_.begin(), below_.end(), 0.0);
  tall_.clear();
  const CellGroups& groups = maps_.cell_groups;
  const int64_t end = groups.first[static_cast<int64_t>(x.outer_end / kCell + 1) * groups.rows];
  for (int64_t i = groups.first[static_cast<int64_t>(x.outer_start / kCell) * groups.rows]; i < end; ++i) {
    if (groups.left[i] < x.outer_start || groups.right[i] > x.outer_end) continue;
    above_[groups.top[i] + 1] += groups.magnitude[i];
    below_[groups.bottom[i] + 1] += groups.magnitude[i];
    if (groups.bottom[i] - groups.top[i] > height) tall_.push_back(static_cast<int32_t>(i));
  }
  for (int y = 0; y < maps_.height; ++y) {
    above_[y + 1] += above_[y];
    below_[y + 1] += below_[y];
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    const Span& y = rows[i];
    // What ends above the box's end less what begins above its start: what is inside less what does the latter alone.
    double mass = below_[y.outer_end + 1] - above_[y.outer_start];
    for (const int32_t g : tall_)
      if (groups.top[g] < y.outer_start && groups.bottom[g] > y.outer_end) mass += groups.magnitude[g];
    const float inside = static_cast<float>(mass) + rounding(x.outer_start, y.outer_start, x.outer_end, y.outer_end);
    bounds[i] = norm(x, y) * (inside - middle(x, y)) * kRoundUp;
  }
}

namespace {

// Where a side may be after its next move, from the outermost place inwards, and where further moves may bring it.
struct Places {
  int outermost[3], innermost[3];

  Places(int at, int outwards, int step, int reach, int length) {
    for (int i = 0; i < 3; ++i) {
      const int place = std::clamp(at + outwards * (1 - i) * step, 0, length - 1);
      outermost[i] = std::clamp(place + outwards * reach, 0, length - 1);
      innermost[i] = std::clamp(place - outwards * reach, 0, length - 1);
    }
  }
};

struct SidePlaces {
  Places left, right, top, bottom;
};

SidePlaces places_of(const Box& box, Steps steps, int width, int height) {
  const Steps step = steps.halve() ? steps : Steps{}, reach = step.reach();
  return {Places(box.x, -1, step.x, reach.x, width), Places(box.x + box.w, 1, step.x, reach.x, width),
          Places(box.y, -1, step.y, reach.y, height), Places(box.y + box.h, 1, step.y, reach.y, height)};
}

}  // namespace

void Bounds::follow(const Box& box, Steps steps) {
  const SidePlaces at = places_of(box, steps, maps_.width, maps_.height);
  const int x0 = at.left.outermost[0], x1 = at.right.outermost[0];
  const int y0 = at.top.outermost[0], y1 = at.bottom.outermost[0];
  const CellGroups& groups = maps_.cell_groups;
  int n = 0;
  for (int cx = x0 / kCell; cx <= x1 / kCell; ++cx) {
    const int32_t* column = &groups.first[static_cast<int64_t>(cx) * groups.rows];
    const int64_t end = column[y1 / kCell + 1];
    for (int64_t i = column[y0 / kCell]; i < end; ++i) {
      left_[n] = groups.left[i];
      right_[n] = groups.right[i];
      top_[n] = groups.top[i];
      bottom_[n] = groups.bottom[i];
      magnitude_[n] = groups.magnitude[i];
      n += (groups.left[i] >= x0) & (groups.right[i] <= x1) & (groups.top[i] >= y0) & (groups.bottom[i] <= y1);
    }
  }
  count_ = n;
  rounding_ = rounding(x0, y0, x1, y1);
}

float Bounds::contained(const Box& box, Steps steps, float threshold) const {
  const SidePlaces at = places_of(box, steps, maps_.width, maps_.height);
  BoxPlaces places;
  for (int i = 0; i < 3; ++i) {
    places.left[i] = at.left.outermost[i];
    places.right[i] = at.right.outermost[i];
    places.top[i] = at.top.outermost[i];
    places.bottom[i] = at.bottom.outermost[i];
  }
  float mass[9][16];
  kernels_.inside({left_.data(), right_.data(), top_.data(), bottom_.data(), magnitude_.data(), count_}, places, mass);
  const auto span = [](const Places& start, int i, const Places& end, int j) {
    return Span(start.outermost[i], end.outermost[j], start.innermost[i], end.innermost[j]);
  };
  Span rows[9];
  for (int j = 0; j < 9; ++j) rows[j] = span(at.top, j / 3, at.bottom, j % 3);
  float best = threshold;
  for (int i = 0; i < 9; ++i) {
    const Span x = span(at.left, i / 3, at.right, i % 3);
    for (int j = 0; j < 9; ++j) {
      const float inside = mass[i][4 * (j / 3) + j % 3 + 5] + rounding_;
      const float largest = norm(x, rows[j]) * kRoundUp;
      if (inside * largest > best) best = std::max(best, (inside - middle(x, rows[j])) * largest);
    }
  }
  return best;
}

}  // namespace avfast::edge_boxes
