// The box score of section 3.2 of the paper.
#include "edge_boxes_score.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace avfast::edge_boxes {

Scorer::Scorer(const ScoreMaps& maps)
    : maps_(maps), order_(maps.groups.count()), expanded_(maps.groups.count()), lost_(maps.groups.count()) {
  nodes_.reserve(maps.groups.count());
  for (int32_t g = 0; g < maps.groups.count(); ++g) {
    const Group& group = maps.groups.groups[g];
    nodes_.push_back({group.anchor_x, group.anchor_y, group.magnitude, maps.groups.first[g], maps.groups.first[g + 1]});
  }
}

bool Scorer::anchored_inside(const Node& node) const {
  const auto dx = static_cast<uint32_t>(node.anchor_x - box_.x), dy = static_cast<uint32_t>(node.anchor_y - box_.y);
  return (dx <= static_cast<uint32_t>(box_.w)) & (dy <= static_cast<uint32_t>(box_.h));
}

// Groups that cross the boundary of the box.
void Scorer::start(const Box& box) {
  box_ = box;
  count_ = 0;
  removed_ = 0;
  if (++stamp_ == std::numeric_limits<int32_t>::max()) {
    for (Node& node : nodes_) node.stamp = 0;
    stamp_ = 1;
  }
  const Sides sides = sides_of(box);
  add_boundary(maps_.row_runs, sides.top);
  add_boundary(maps_.row_runs, sides.bottom);
  add_boundary(maps_.column_runs, sides.left);
  add_boundary(maps_.column_runs, sides.right);
  on_boundary_ = count_;
}

Scorer::Sides Scorer::sides_of(const Box& box) const {
  const int64_t height = maps_.height, x0 = box.x, y0 = box.y, x1 = box.x + box.w, y1 = box.y + box.h;
  const RunEnds top_left = maps_.run_ends[x0 * height + y0], top_right = maps_.run_ends[x1 * height + y0];
  const RunEnds bottom_left = maps_.run_ends[x0 * height + y1], bottom_right = maps_.run_ends[x1 * height + y1];
  return {{RunEnds::begin(top_left.row), RunEnds::end(top_right.row)},
          {RunEnds::begin(bottom_left.row), RunEnds::end(bottom_right.row)},
          {RunEnds::begin(top_left.column), RunEnds::end(bottom_left.column)},
          {RunEnds::begin(top_right.column), RunEnds::end(bottom_right.column)}};
}

void Scorer::add_boundary(const std::vector<int32_t>& runs, Side side) {
  for (int32_t i = side.begin; i < side.end; ++i) {
    Node& node = nodes_[runs[i]];
    if (node.stamp == stamp_) continue;
    node.stamp = stamp_;
    node.position = count_;
    node.weight = 1;
    expanded_[count_] = false;
    order_[count_++] = runs[i];
    if (anchored_inside(node)) removed_ += node.magnitude;
  }
}

// Follows links inwards until no weight grows; false as soon as more than `limit` is removed. A group whose weight
// grows is taken up again at once, which fixes the order in which groups are reached.
bool Scorer::expand(double limit) {
  const Neighbour* neighbours = maps_.groups.neighbours.data();
  for (int32_t i = 0; i < count_; ++i) {
    if (expanded_[i]) continue;
    expanded_[i] = true;
    const Node& from = nodes_[order_[i]];
    const float from_weight = from.weight;
    for (const Neighbour *link = neighbours + from.first, *end = neighbours + from.last; link != end; ++link) {
      const float weight = from_weight * link->affinity;
      if (weight < kMinWeight) continue;
      Node& to = nodes_[link->group];
      if (to.stamp != stamp_) {
        if (!anchored_inside(to)) continue;
        to.stamp = stamp_;
        to.position = count_;
        to.weight = weight;
        expanded_[count_] = false;
        order_[count_++] = link->group;
        removed_ += weight * to.magnitude;
      } else if (weight > to.weight) {
        removed_ += (weight - to.weight) * to.magnitude;
        to.weight = weight;
        expanded_[to.position] = false;
        i = std::min(i, to.position - 1);
      }
    }
    if (removed_ > limit) return false;
  }
  return true;
}

// Clips `box` to the frame. Returns the mass of what is anchored inside, less that of the middle's edges; 0 where it
// cannot score above `floor`.
float Scorer::mass_of(Box& box, float floor) const {
  const int x1 = std::clamp(box.x + box.w, 0, maps_.width - 1), y1 = std::clamp(box.y + box.h, 0, maps_.height - 1);
  const int x0 = std::clamp(box.x, 0, maps_.width - 1), y0 = std::clamp(box.y, 0, maps_.height - 1);
  box = {x0, y0, x1 - x0, y1 - y0};
  if (box.w < 0 || box.h < 0 || box.w / 2 + box.h / 2 == 0) return 0;
  const int64_t stride = maps_.height + 1;
  float mass = box_sum(maps_.group_integral, stride, x0, y0, x1, y1);
  mass -= box_sum(maps_.edge_integral, stride, middle_begin(x0, x1), middle_begin(y0, y1), middle_end(x0, x1),
                  middle_end(y0, y1));
  return mass * norm_of(box) > floor ? mass : 0;
}

// A box of this mass that loses more scores no more than `floor`.
double Scorer::most_loss(float mass, float norm, float floor) const {
  return mass - static_cast<double>(floor) / norm + maps_.relative_rounding * mass;
}

float Scorer::score(Box& box, float floor) {
  float mass = mass_of(box, floor);
  if (mass == 0) return 0;
  const float norm = norm_of(box);
  const double limit = most_loss(mass, norm, floor);
  start(box);
  if (removed_ > limit || !expand(limit)) return 0;
  for (int32_t i = 0; i < count_; ++i) {
    const Node& node = nodes_[order_[i]];
    if (i >= on_boundary_ || anchored_inside(node)) mass -= node.weight * node.magnitude;
  }
  mass *= norm;
  return mass > floor ? mass : 0;
}

// With the estimate's number before the mass, one maximum takes the larger of two losses and forgets those of earlier
// estimates.
uint64_t Scorer::loss_through(const LineLosses& line, int32_t begin, int32_t end, const Extent& box) {
  uint64_t more = 0;
  for (const Loss *loss = &line.losses[begin], *last = loss + (end - begin); loss != last; ++loss) {
    const uint64_t before = std::max(lost_[loss->group], estimate_);
    const uint64_t after = std::max(before, estimate_ | (loss->path.within(box) ? loss->mass : 0));
    lost_[loss->group] = after;
    more += after - before;
  }
  return more;
}

Score Scorer::estimate(Box& box, float floor) {
  if (!maps_.losses.known()) {
    const float exact = score(box, floor);
    return {exact, exact};
  }
  const float mass = mass_of(box, floor);
  if (mass == 0) return {};
  if ((estimate_ += uint64_t{1} << 32) == 0) std::fill(lost_.begin(), lost_.end(), 0);
  const Sides sides = sides_of(box);
  const Extent inside(box.x, box.y, box.x + box.w, box.y + box.h);
  const LineLosses &rows = maps_.losses.rows, &columns = maps_.losses.columns;
  const auto through = [&](const LineLosses& line, const std::vector<int32_t>& bounds, Side side) {
    return side.begin < side.end ? loss_through(line, bounds[side.begin], bounds[side.end], inside) : uint64_t{0};
  };
  const uint64_t lost = through(rows, rows.ahead, sides.top) + through(rows, rows.behind, sides.bottom) +
                        through(columns, columns.ahead, sides.left) + through(columns, columns.behind, sides.right);
  const double at_least = static_cast<double>(lost) * maps_.losses.unit;  // each loss was rounded down
  const double at_most = at_least + maps_.groups.count() * maps_.losses.unit;
  const float norm = norm_of(box);
  if (at_least > most_loss(mass, norm, floor)) return {};
  const double slack = maps_.relative_rounding * mass;
  return {static_cast<float>((mass - at_most - slack) * norm), static_cast<float>((mass - at_least + slack) * norm)};
}

}  // namespace avfast::edge_boxes
