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
  float magnitude;       // sum of its edge magnitudes
  int32_t anchor_x = 0;  // its last pixel in visiting order: the group counts as inside a box when its
  int32_t anchor_y = 0;  // anchor is
};

struct Neighbour {
  int32_t group;
  float affinity;
};

// The neighbours of each group whose affinity is at least kMinWeight, in order of discovery.
struct Links {
  std::vector<int32_t> first;  // [G + 1] bounds in neighbours
  std::vector<Neighbour> neighbours;
};

// Groups are numbered from 1; 0 is "no group".
struct EdgeGroups {
  std::vector<int32_t> ids;  // [W * H] by columns
  std::vector<Group> groups;
  Links near;      // groups with pixels at most two apart: the links of the score
  Links touching;  // those of them with adjacent pixels: no box boundary passes between two such groups

  int32_t count() const { return static_cast<int32_t>(groups.size()); }
};

// A group connected to a box's boundary by less than this is left in the box.
constexpr float kMinWeight = 0.05f;

EdgeGroups group_edges(const ColumnMap& edges, const ColumnMap& orientation, const EdgeBoxesParams& params);

}  // namespace avfast::edge_boxes
