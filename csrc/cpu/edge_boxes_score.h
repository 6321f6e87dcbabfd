// The score of a box: the mass of the edge groups wholly inside it over its perimeter, and what it is computed from.
#pragma once

#include <cstdint>
#include <vector>

#include "edge_boxes_losses.h"

namespace avfast::edge_boxes {

// Covers the pixels x .. x + w and y .. y + h, both ends included.
struct Box {
  int x, y, w, h;

  bool operator==(const Box& other) const { return x == other.x && y == other.y && w == other.w && h == other.h; }
};

constexpr int kCell = 16;  // side of a cell in pixels

// Where groups lie, sorted by the cell of their anchors, cells by columns.
struct CellGroups {
  int rows;                                       // of cells
  std::vector<int32_t> first;                     // [columns * rows + 1] bounds of each cell
  std::vector<int32_t> left, right, top, bottom;  // [G - 1] first and last pixels
  std::vector<float> magnitude;                   // [G - 1]
};

// Where the runs of groups that begin at or before a pixel end, in ScoreMaps::row_runs and column_runs.
struct RunEnds {
  uint32_t row;     // twice the end, plus 1 if the pixel itself lies in a group
  uint32_t column;  // likewise

  static int32_t end(uint32_t code) { return static_cast<int32_t>(code >> 1); }
  // Of the runs of a line from this pixel on.
  static int32_t begin(uint32_t code) { return end(code) - static_cast<int32_t>(code & 1); }
};

// What a frame's scores are computed from; read-only once built.
struct ScoreMaps {
  int width, height;
  EdgeGroups groups;
  std::vector<float> group_integral;  // [(W + 1) * (H + 1)] by columns, of group masses put at the anchors
  std::vector<float> edge_integral;   // [(W + 1) * (H + 1)] of edge magnitudes
  double integral_rounding;           // how far rounding of the integrals can take their sums over a box apart
  double relative_rounding;           // of a box's mass: what subtracting its groups one by one can lose
  std::vector<int32_t> row_runs;      // groups met along row 0, row 1, ...
  std::vector<int32_t> column_runs;
  std::vector<RunEnds> run_ends;  // [W * H] by columns
  CellGroups cell_groups;         // what lies near a box
  Losses losses;
  std::vector<float> norm;  // by w / 2 + h / 2: its -kappa'th power
};

ScoreMaps build_score_maps(const ColumnMap& edges, const ColumnMap& orientation, const EdgeBoxesParams& params);

// The integral over the pixels x0 .. x1, y0 .. y1; `stride` is the map's height + 1.
template <typename T>
T box_sum(const std::vector<T>& integral, int64_t stride, int x0, int y0, int x1, int y1) {
  const T* left = &integral[x0 * stride];
  const T* right = &integral[(x1 + 1) * stride];
  return left[y0] + right[y1 + 1] - right[y0] - left[y1 + 1];
}

// First and last pixel of the middle half of start .. end.
inline int middle_begin(int start, int end) { return start + (end - start) / 2 / 2; }
inline int middle_end(int start, int end) { return middle_begin(start, end) + (end - start) / 2; }

// Where a score lies: exact if both are equal, 0 for one that is not above the floor.
struct Score {
  float low = 0, high = 0;

  bool exact() const { return low == high; }
};

// Scores boxes of one frame; holds the scratch memory of one thread.
class Scorer {
 public:
  explicit Scorer(const ScoreMaps& maps);

  // Clips `box` to the frame. Returns its score where that exceeds `floor` (>= 0), else 0.
  float score(Box& box, float floor);
  // The same to within rounding, sooner, where the losses are known; else exact.
  Score estimate(Box& box, float floor);

 private:
  // Bounds of the runs along each side of a box.
  struct Side {
    int32_t begin, end;
  };
  struct Sides {
    Side top, bottom, left, right;
  };

  // A group and the search that reached it last, in one cache line.
  struct alignas(32) Node {
    int32_t anchor_x, anchor_y;
    float magnitude;
    int32_t first, last;   // bounds in neighbours
    int32_t stamp = 0;     // of the last search that reached the group
    int32_t position = 0;  // in order_
    float weight = 0;      // strength of its connection to the boundary
  };

  float mass_of(Box& box, float floor) const;
  double most_loss(float mass, float norm, float floor) const;
  float norm_of(const Box& box) const { return maps_.norm[box.w / 2 + box.h / 2]; }
  Sides sides_of(const Box& box) const;
  void start(const Box& box);
  void add_boundary(const std::vector<int32_t>& runs, Side side);
  bool expand(double limit);
  bool anchored_inside(const Node& node) const;
  uint64_t loss_through(const LineLosses& line, int32_t begin, int32_t end, const Extent& box);

  const ScoreMaps& maps_;
  Box box_{};
  int32_t stamp_ = 0;
  int32_t on_boundary_ = 0;        // groups that cross it
  int32_t count_ = 0;              // groups connected to the boundary so far
  double removed_ = 0;             // their mass inside the box, times weight
  std::vector<Node> nodes_;        // [G]
  std::vector<int32_t> order_;     // [G] groups in order of reaching
  std::vector<uint8_t> expanded_;  // [G] in the same order
  std::vector<uint64_t> lost_;     // [G] the largest loss of a group, after the estimate's number
  uint64_t estimate_ = 0;          // its number, in the upper half
};

}  // namespace avfast::edge_boxes
