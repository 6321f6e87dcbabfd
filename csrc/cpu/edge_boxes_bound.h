// Upper bounds on the scores of all boxes that refining a window can reach.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "edge_boxes_score.h"

namespace avfast::edge_boxes {

// Offsets that refinement tries on each side, halved from one round to the next.
struct Steps {
  int x = 0, y = 0;

  bool halve() {
    x /= 2;
    y /= 2;
    if (x <= 2 && y <= 2) return false;
    x = std::max(1, x);
    y = std::max(1, y);
    return true;
  }

  // How far a side can move in all rounds to come.
  Steps reach() const {
    Steps sum, step = *this;
    while (step.halve()) {
      sum.x += step.x;
      sum.y += step.y;
    }
    return sum;
  }
};

// Where two opposite sides of a set of boxes may lie, each up to `reach` from a place in the frame.
struct Span {
  Span(int start, int end, int reach, int length);

  int outer_start, outer_end;  // of the largest box
  // The pixels in the middle half of every box; none where the first comes after the last.
  int middle_first, middle_last;
  int half;  // of the smallest box's side, as the score rounds it
};

// Bounds for one frame; holds the scratch memory of one thread.
class Bounds {
 public:
  explicit Bounds(const ScoreMaps& maps) : maps_(maps) {}

  // From integral images alone, for every box of these spans: all mass that is anchored in the largest box.
  float anchored(const Span& x, const Span& y) const {
    const int64_t stride = maps_.height + 1;
    double mass = box_sum(maps_.ceiling, stride, x.outer_start, y.outer_start, x.outer_end, y.outer_end);
    mass += maps_.relative_rounding * mass + maps_.corner_rounding;
    return norm(x, y) * static_cast<float>(mass - middle(x, y)) * kRoundUp;
  }

  // For `box` and all that further rounds of refinement with `steps` can make of it; `threshold` where the bound is
  // no more than that. The sides' moves in the next round divide these boxes into 81 sets; of each set, the bound takes
  // the groups that lie wholly inside the largest box, since no other group can count.
  float contained(const Box& box, Steps steps, float threshold);

 private:
  static constexpr float kRoundUp = 1 + 1e-6f;

  // The largest in the set: that of the smallest box. A box of no size scores 0.
  float norm(const Span& x, const Span& y) const { return maps_.norm[std::max(1, x.half + y.half)]; }

  // Edge mass that lies in the middle quarter of every box.
  float middle(const Span& x, const Span& y) const {
    if (x.middle_last < x.middle_first || y.middle_last < y.middle_first) return 0;
    return std::max(0.0f, box_sum(maps_.edge_integral, maps_.height + 1, x.middle_first, y.middle_first, x.middle_last,
                                  y.middle_last));
  }

  // Where a side may be after one round, from the outermost place inwards, and after all rounds.
  struct Places {
    int place[3], outermost[3];
    Places(int side, int step, int reach, int length);
  };
  // Sorts groups into inside_ by how many of the outermost places of each side they lie within.
  void sort_groups(const Places& left, const Places& right, const Places& top, const Places& bottom);

  const ScoreMaps& maps_;
  float inside_[4][4][4][4];  // left, right, top, bottom
  std::vector<Span> spans_;
};

}  // namespace avfast::edge_boxes
