// Edge groups: chains of edge pixels of similar orientation, and the affinity of neighbouring groups.
#pragma once

#include <cstdint>
#include <vector>

#include "edge_boxes.h"

namespace avfast::edge_boxes {

// A map by columns: the value at (x, y) lies at x * height + y. Columns are the outer loop throughout, because the
// order in which pixels are visited decides how groups form and how float sums round.
struct ColumnMap {
  int width = 0;
  int height = 0;
  std::vector<float> values;

  int64_t at(int x, int y) const { return static_cast<int64_t>(x) * height + y; }
};

struct Group {
  float magnitude;   // sum of its edge magnitudes
  int32_t anchor_x;  // its last pixel in visiting order: the group counts as inside a box when its anchor is
  int32_t anchor_y;
  int32_t left;  // its first column; the last is anchor_x
  int32_t top;   // its first and last row
  int32_t bottom;
};

struct Neighbour {
  int32_t group;
  float affinity;
};

// Groups are numbered from 1; 0 is "no group".
struct EdgeGroups {
  std::vector<int32_t> ids;  // [W * H] by columns
  std::vector<Group> groups;
  std::vector<int32_t> first;         // [G + 1] bounds in neighbours
  std::vector<Neighbour> neighbours;  // of affinity >= kMinWeight, in order of discovery

  int32_t count() const { return static_cast<int32_t>(groups.size()); }
};

// A group connected to a box's boundary by less than this is left in the box.
constexpr float kMinWeight = 0.05f;

EdgeGroups group_edges(const ColumnMap& edges, const ColumnMap& orientation, const EdgeBoxesParams& params);

}  // namespace avfast::edge_boxes
