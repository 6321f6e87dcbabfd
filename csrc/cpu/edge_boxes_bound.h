// Upper bounds on the scores of all boxes that refining a window can reach.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/simd/kernels.h"
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

// Where two opposite sides of a set of boxes may lie: the outermost places and the innermost ones.
struct Span {
  Span() = default;
  Span(int outer_start, int outer_end, int inner_start, int inner_end);
  // Each side up to `reach` from a place in the frame.
  static Span around(int start, int end, int reach, int length);

  int outer_start, outer_end;  // of the largest box
  // The pixels in the middle half of every box; none where the first comes after the last.
  int middle_first, middle_last;
  int half;  // of the smallest box's side, as the score rounds it
};

// Bounds for one frame; holds the scratch memory of one thread. All of them rest on this: a group counts in a box only
// if it lies wholly inside, thus inside the largest of a set of boxes.
class Bounds {
 public:
  explicit Bounds(const ScoreMaps& maps);

  // For the boxes between the columns of `x` and the rows of each of `rows`.
  void column(const Span& x, const std::vector<Span>& rows, float* bounds);

  // Prepares for contained() with `box`, at any stage of its refinement.
  void follow(const Box& box, Steps steps);
  // For `box` and all that further rounds of refinement with `steps` can make of it; `threshold` where the bound is
  // no more than that. The sides' moves in the next round divide these boxes into 81 sets, each bounded by itself.
  float contained(const Box& box, Steps steps, float threshold) const;

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
  // How much more than its groups' masses less its middle a box inside this one can count through rounding.
  float rounding(int x0, int y0, int x1, int y1) const {
    const float mass = box_sum(maps_.group_integral, maps_.height + 1, x0, y0, x1, y1);
    return static_cast<float>(maps_.integral_rounding + 2 * maps_.relative_rounding * (mass + maps_.integral_rounding));
  }

  const ScoreMaps& maps_;
  const EdgeBoxesKernels& kernels_ = edge_boxes_kernels();
  std::vector<double> above_, below_;  // [H + 1] mass of a column's groups that begin above y, that end above y
  std::vector<int32_t> tall_;          // those taller than a box
  std::vector<int32_t> left_, right_, top_, bottom_;  // [G] of the groups inside the largest box followed
  std::vector<float> magnitude_;
  int count_ = 0;
  float rounding_ = 0;
};

}  // namespace avfast::edge_boxes
