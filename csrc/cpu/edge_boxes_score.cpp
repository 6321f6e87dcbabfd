// The box score of section 3.2 of the paper.
#include "edge_boxes_score.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace avfast::edge_boxes {

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
bool Scorer::expand(double limit) {
  const EdgeGroups& groups = maps_.groups;
  for (int32_t i = 0; i < count_; ++i) {
    Reached& from = reached_[order_[i]];
    if (from.expanded) continue;
    from.expanded = true;
    const int32_t g = order_[i];
    for (int32_t k = groups.first[g]; k < groups.first[g + 1]; ++k) {
      const float weight = from.weight * groups.neighbours[k].affinity;
      if (weight < kMinWeight) continue;
      const int32_t q = groups.neighbours[k].group;
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
  if (removed_ > limit || !expand(limit)) return 0;
  for (int32_t i = 0; i < count_; ++i) {
    const Group& group = maps_.groups.groups[order_[i]];
    if (anchored_inside(group)) mass -= reached_[order_[i]].weight * group.magnitude;
  }
  mass *= norm;
  return mass > floor ? mass : 0;
}

}  // namespace avfast::edge_boxes
