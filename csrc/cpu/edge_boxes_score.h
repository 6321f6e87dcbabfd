// The score of a box: the mass of the edge groups wholly inside it over its perimeter, and upper bounds on it.
#pragma once

#include <cstdint>
#include <vector>

#include "edge_boxes_groups.h"

namespace avfast::edge_boxes {

// Covers the pixels x .. x + w and y .. y + h, both ends included.
struct Box {
  int x, y, w, h;
};

// All boxes whose sides lie in these ranges, ends included.
struct Family {
  int left[2], right[2], top[2], bottom[2];
};

// What a frame's scores are computed from; read-only once built.
struct ScoreMaps {
  int width, height;
  EdgeGroups groups;
  std::vector<float> group_integral;  // [(W + 1) * (H + 1)] by columns, of group masses put at the anchors
  std::vector<float> edge_integral;   // [(W + 1) * (H + 1)] of edge magnitudes
  std::vector<double> ceiling;        // [(W + 1) * (H + 1)] as group_integral, and never less for a larger box
  double corner_rounding;             // how far sums of both integrals over a box can be off, given the integrals
  double relative_rounding;           // of a box's mass: what subtracting its groups one by one can lose
  std::vector<int32_t> row_runs;      // groups met along row 0, row 1, ...
  std::vector<int32_t> column_runs;
  std::vector<int32_t> row_end;     // [W * H] end in row_runs of the runs that begin at or before (x, y)
  std::vector<int32_t> column_end;  // [W * H]
  std::vector<float> norm;          // by w / 2 + h / 2: its -kappa'th power
};

ScoreMaps build_score_maps(const ColumnMap& edges, const ColumnMap& orientation, const EdgeBoxesParams& params);

// An upper bound on the score of every box of `family` (clipped to the frame), from integral images alone.
float anchored_bound(const ScoreMaps& maps, const Family& family);

// Scores boxes of one frame; holds the scratch memory of one thread.
class Scorer {
 public:
  explicit Scorer(const ScoreMaps& maps);

  // Clips `box` to the frame. Returns its score where that exceeds `floor` (>= 0), else 0.
  float score(Box& box, float floor);

  // A tighter and dearer upper bound than anchored_bound. It rests on this: shrinking a box never gives a group more
  // weight. A chain of touching groups that ties a group to the boundary of the family's hull also meets the boundary
  // of every smaller box around that group, and from there on it is shorter.
  float connected_bound(const Family& family);

 private:
  struct Reached {
    int32_t stamp = 0;     // of the last search that reached the group
    int32_t position = 0;  // in order_
    float weight = 0;      // strength of its connection to the boundary
    bool expanded = false;
  };

  void start(const Box& box);
  void add_boundary(const std::vector<int32_t>& runs, int32_t begin, int32_t end);
  bool expand(const Links& links, double limit);
  bool anchored_inside(const Group& group) const;

  const ScoreMaps& maps_;
  Box box_{};
  int32_t stamp_ = 0;
  int32_t count_ = 0;             // groups connected to the boundary so far
  double removed_ = 0;            // their mass inside the box, times weight
  std::vector<Reached> reached_;  // [G]
  std::vector<int32_t> order_;    // [G] groups in order of reaching
};

}  // namespace avfast::edge_boxes
