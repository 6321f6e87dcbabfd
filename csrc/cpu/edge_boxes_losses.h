// What the groups on a box's boundary take from it, found once for all boxes of a frame whose groups have few
// neighbours.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "edge_boxes_groups.h"

namespace avfast::edge_boxes {

// The smallest box around some places, packed so that one subtraction tells whether another box holds it.
class Extent {
 public:
  static constexpr int kMax = 0x7fff;  // of a coordinate

  Extent() = default;
  Extent(int left, int top, int right, int bottom)
      : sides_(lane(left, 0) | lane(top, 1) | lane(kMax - right, 2) | lane(kMax - bottom, 3)) {}

  int left() const { return value(0); }
  int top() const { return value(1); }
  int right() const { return kMax - value(2); }
  int bottom() const { return kMax - value(3); }
  Extent with(const Extent& other) const {
    return {std::min(left(), other.left()), std::min(top(), other.top()), std::max(right(), other.right()),
            std::max(bottom(), other.bottom())};
  }
  // Every side of one that lies in another is no less; the highest bit of a lane stays set where that is so.
  bool within(const Extent& outer) const { return (((sides_ | kHighest) - outer.sides_) & kHighest) == kHighest; }

 private:
  static constexpr uint64_t kHighest = 0x8000800080008000;
  static uint64_t lane(int value, int i) { return static_cast<uint64_t>(value) << (16 * i); }
  int value(int i) const { return static_cast<int>(sides_ >> (16 * i) & kMax); }

  uint64_t sides_ = 0;
};

// A box that holds `path` loses at least `mass` of `group`, if the group that the path starts from crosses its
// boundary.
struct Loss {
  Extent path;  // around the anchors it leads through, its end's included
  int32_t group;
  uint32_t mass;  // of the group, times the weight of the path; in units of the frame, rounded down
};

// The losses through each run of groups along the rows, or along the columns.
struct LineLosses {
  std::vector<Loss> losses;
  // [runs + 1] bounds in `losses`: of the paths that stay on the one side of the line, and on the other.
  std::vector<int32_t> ahead, behind;
};

// Empty where paths are too many to be worth their time.
struct Losses {
  LineLosses rows, columns;
  double unit = 0;  // of mass; all groups together have at most 2^31

  bool known() const { return !rows.ahead.empty(); }
};

// Where a run of groups along a row or column lies, by runs.
struct Runs {
  const std::vector<int32_t>& groups;
  const std::vector<int32_t>& lines;
};

Losses find_losses(const EdgeGroups& groups, int width, int height, const Runs& rows, const Runs& columns);

}  // namespace avfast::edge_boxes
