// The box score of section 3.2 of the paper, and bounds on it for a family of boxes.
#include "edge_boxes_score.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace avfast::edge_boxes {
namespace {

// The integral at the corners of the pixels x0 .. x1, y0 .. y1.
template <typename T>
T box_sum(const std::vector<T>& integral, int64_t stride, int x0, int y0, int x1, int y1) {
  const T* left = &integral[x0 * stride];
  const T* right = &integral[(x1 + 1) * stride];
  return left[y0] + right[y1 + 1] - right[y0] - left[y1 + 1];
}

// First and last pixel of the middle half of start .. end.
int middle_begin(int start, int end) { return start + (end - start) / 2 / 2; }
int middle_end(int start, int end) { return middle_begin(start, end) + (end - start) / 2; }

// Edge mass that lies in the middle quarter of every box of the family.
float common_middle(const ScoreMaps& maps, const Family& f) {
  const int x0 = middle_begin(f.left[1], f.right[1]), y0 = middle_begin(f.top[1], f.bottom[1]);
  // Rounding down can take one pixel more from the end of a longer side.
  const int x1 = middle_end(f.left[0], f.right[0]) - 1, y1 = middle_end(f.top[0], f.bottom[0]) - 1;
  return x1 < x0 || y1 < y0 ? 0.0f : box_sum(maps.edge_integral, maps.height + 1, x0, y0, x1, y1);
}

double hull_mass(const ScoreMaps& maps, const Family& f) {
  return box_sum(maps.ceiling, maps.height + 1, f.left[0], f.top[0], f.right[1], f.bottom[1]);
}

// The largest normalisation, that of the smallest box; a box of no size scores 0.
float largest_norm(const ScoreMaps& maps, const Family& f) {
  const int w = std::max(0, f.right[0] - f.left[1]), h = std::max(0, f.bottom[0] - f.top[1]);
  return maps.norm[std::max(1, w / 2 + h / 2)];
}

float bound(const ScoreMaps& maps, const Family& family, double removed) {
  const double mass = hull_mass(maps, family);
  const double best =
      mass - removed - common_middle(maps, family) + maps.corner_rounding + maps.relative_rounding * mass;
  return static_cast<float>(best * largest_norm(maps, family) * (1 + 1e-6));
}

}  // namespace

float anchored_bound(const ScoreMaps& maps, const Family& family) { return bound(maps, family, 0); }

Scorer::Scorer(const ScoreMaps& maps) : maps_(maps), reached_(maps.groups.count()), order_(maps.groups.count()) {}

bool Scorer::anchored_inside(const Group& group) const {
  const auto dx = static_cast<uint32_t>(group.anchor_x - box_.x), dy = static_cast<uint32_t>(group.anchor_y - box_.y);
  return dx <= static_cast<uint32_t>(box_.w) && dy <= static_cast<uint32_t>(box_.h);
}

// Groups that cross the boundary of the box.
void Scorer::start(const Box& box) {
  box_ = box;
  count_ = 0;
  removed_ = 0;
  if (++stamp_ == std::numeric_limits<int32_t>::max()) {
    std::fill(reached_.begin(), reached_.end(), Reached{});
    stamp_ = 1;
  }
  const int64_t height = maps_.height, x0 = box.x, y0 = box.y, x1 = box.x + box.w, y1 = box.y + box.h;
  const std::vector<int32_t>& ids = maps_.groups.ids;
  const auto add_row = [&](int64_t left, int64_t right) {
    add_boundary(maps_.row_runs, maps_.row_end[left] - (ids[left] != 0), maps_.row_end[right]);
  };
  const auto add_column = [&](int64_t top, int64_t bottom) {
    add_boundary(maps_.column_runs, maps_.column_end[top] - (ids[top] != 0), maps_.column_end[bottom]);
  };
  add_row(x0 * height + y0, x1 * height + y0);
  add_row(x0 * height + y1, x1 * height + y1);
  add_column(x0 * height + y0, x0 * height + y1);
  add_column(x1 * height + y0, x1 * height + y1);
}

void Scorer::add_boundary(const std::vector<int32_t>& runs, int32_t begin, int32_t end) {
  for (int32_t i = begin; i < end; ++i) {
    const int32_t g = runs[i];
    if (reached_[g].stamp == stamp_) continue;
    reached_[g] = {stamp_, count_, 1.0f, false};
    order_[count_++] = g;
    const Group& group = maps_.groups.groups[g];
    if (anchored_inside(group)) removed_ += group.magnitude;
  }
}

// Follows links inwards until no weight grows; false as soon as more than `limit` is removed. A group whose weight
// grows is taken up again at once, which fixes the order in which groups are reached.
bool Scorer::expand(const Links& links, double limit) {
  for (int32_t i = 0; i < count_; ++i) {
    Reached& from = reached_[order_[i]];
    if (from.expanded) continue;
    from.expanded = true;
    const int32_t g = order_[i];
    for (int32_t k = links.first[g]; k < links.first[g + 1]; ++k) {
      const float weight = from.weight * links.neighbours[k].affinity;
      if (weight < kMinWeight) continue;
      const int32_t q = links.neighbours[k].group;
      Reached& to = reached_[q];
      const Group& group = maps_.groups.groups[q];
      if (to.stamp != stamp_) {
        if (!anchored_inside(group)) continue;
        to = {stamp_, count_, weight, false};
        order_[count_++] = q;
        removed_ += weight * group.magnitude;
      } else if (weight > to.weight) {
        removed_ += (weight - to.weight) * group.magnitude;
        to.weight = weight;
        to.expanded = false;
        i = std::min(i, to.position - 1);
      }
    }
    if (removed_ > limit) return false;
  }
  return true;
}

float Scorer::score(Box& box, float floor) {
  const int x1 = std::clamp(box.x + box.w, 0, maps_.width - 1), y1 = std::clamp(box.y + box.h, 0, maps_.height - 1);
  const int x0 = std::clamp(box.x, 0, maps_.width - 1), y0 = std::clamp(box.y, 0, maps_.height - 1);
  box = {x0, y0, x1 - x0, y1 - y0};
  if (box.w < 0 || box.h < 0 || box.w / 2 + box.h / 2 == 0) return 0;

  const int64_t stride = maps_.height + 1;
  const float norm = maps_.norm[box.w / 2 + box.h / 2];
  float mass = box_sum(maps_.group_integral, stride, x0, y0, x1, y1);
  mass -= box_sum(maps_.edge_integral, stride, middle_begin(x0, x1), middle_begin(y0, y1), middle_end(x0, x1),
                  middle_end(y0, y1));
  if (!(mass * norm > floor)) return 0;

  const double limit = mass - static_cast<double>(floor) / norm + maps_.relative_rounding * mass;
  start(box);
  if (removed_ > limit || !expand(maps_.groups.near, limit)) return 0;
  for (int32_t i = 0; i < count_; ++i) {
    const Group& group = maps_.groups.groups[order_[i]];
    if (anchored_inside(group)) mass -= reached_[order_[i]].weight * group.magnitude;
  }
  mass *= norm;
  return mass > floor ? mass : 0;
}

float Scorer::connected_bound(const Family& family) {
  start({family.left[0], family.top[0], family.right[1] - family.left[0], family.bottom[1] - family.top[0]});
  expand(maps_.groups.touching, std::numeric_limits<double>::infinity());
  return bound(maps_, family, removed_);
}

}  // namespace avfast::edge_boxes
