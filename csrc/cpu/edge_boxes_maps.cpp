// Integral images and lists of boundary crossings, from which boxes are scored.
#include <algorithm>
#include <cmath>
#include <limits>

#include "edge_boxes_score.h"

namespace avfast::edge_boxes {
namespace {

// How far an integral is off.
class Deviation {
 public:
  void add(double deviation) {
    least_ = std::min(least_, deviation);
    most_ = std::max(most_, deviation);
  }
  // Of the sum over any box, which two corners add to and two take from.
  double of_boxes() const { return 2 * (most_ - least_); }

 private:
  double least_ = 0, most_ = 0;
};

// Sums in float, in this order of operations, so that scores are reproducible to the bit; in double to see how far off
// they are.
void build_integrals(const ColumnMap& edges, float edge_min_mag, ScoreMaps& maps) {
  const int64_t stride = edges.height + 1;
  maps.edge_integral.assign((edges.width + 1) * stride, 0.0f);
  maps.group_integral.assign((edges.width + 1) * stride, 0.0f);
  std::vector<float> anchored(edges.values.size(), 0.0f);
  for (int32_t g = 1; g < maps.groups.count(); ++g) {
    const Group& group = maps.groups.groups[g];
    anchored[edges.at(group.anchor_x, group.anchor_y)] = group.magnitude;
  }
  std::vector<double> exact_edge(edges.height, 0.0), exact_mass(edges.height, 0.0);
  Deviation edge_deviation, mass_deviation;
  for (int x = 1; x < edges.width; ++x) {
    const float* edge = &edges.values[edges.at(x, 0)];
    const float* mass = &anchored[edges.at(x, 0)];
    float* edge_sum = &maps.edge_integral[(x + 1) * stride + 1];
    float* mass_sum = &maps.group_integral[(x + 1) * stride + 1];
    double column_edge = 0, column_mass = 0;
    for (int64_t y = 1; y < edges.height; ++y) {
      const float e = edge[y] > edge_min_mag ? edge[y] : 0.0f;
      edge_sum[y] = e + edge_sum[y - stride] + edge_sum[y - 1] - edge_sum[y - stride - 1];
      mass_sum[y] = mass[y] + mass_sum[y - stride] + mass_sum[y - 1] - mass_sum[y - stride - 1];
      column_edge += e;
      column_mass += mass[y];
      exact_edge[y] += column_edge;
      exact_mass[y] += column_mass;
      edge_deviation.add(edge_sum[y] - exact_edge[y]);
      mass_deviation.add(mass_sum[y] - exact_mass[y]);
    }
  }
  // The middle is summed twice, for the bound and for the score; a box's four corners are added up in float.
  maps.integral_rounding = mass_deviation.of_boxes() + 2 * edge_deviation.of_boxes() +
                           8 * std::numeric_limits<float>::epsilon() *
                               (static_cast<double>(maps.edge_integral.back()) + maps.group_integral.back());
}

// Groups met along each column and each row, a run of pixels of one group counted once.
void build_runs(int width, int height, ScoreMaps& maps) {
  const std::vector<int32_t>& ids = maps.groups.ids;
  maps.column_end.resize(ids.size());
  maps.row_end.resize(ids.size());
  const auto scan = [&](int64_t begin, int64_t step, int length, std::vector<int32_t>& runs,
                        std::vector<int32_t>& end) {
    int32_t previous = 0;
    for (int64_t p = begin, i = 0; i < length; ++i, p += step) {
      if (ids[p] != 0 && ids[p] != previous) runs.push_back(ids[p]);
      previous = ids[p];
      end[p] = static_cast<int32_t>(runs.size());
    }
  };
  for (int x = 0; x < width; ++x) scan(static_cast<int64_t>(x) * height, 1, height, maps.column_runs, maps.column_end);
  for (int y = 0; y < height; ++y) scan(y, height, width, maps.row_runs, maps.row_end);
}

void sort_into_cells(ScoreMaps& maps) {
  CellGroups& out = maps.cell_groups;
  out.rows = (maps.height + kCell - 1) / kCell;
  const int columns = (maps.width + kCell - 1) / kCell;
  const std::vector<Group>& groups = maps.groups.groups;
  const auto cell = [&](const Group& group) { return group.anchor_x / kCell * out.rows + group.anchor_y / kCell; };
  out.first.assign(static_cast<size_t>(columns) * out.rows + 1, 0);
  for (size_t g = 1; g < groups.size(); ++g) ++out.first[cell(groups[g]) + 1];
  for (size_t c = 1; c < out.first.size(); ++c) out.first[c] += out.first[c - 1];
  std::vector<int32_t> next(out.first.begin(), out.first.end() - 1);
  for (std::vector<int32_t>* side : {&out.left, &out.right, &out.top, &out.bottom}) side->resize(groups.size() - 1);
  out.magnitude.resize(groups.size() - 1);
  for (size_t g = 1; g < groups.size(); ++g) {
    const int32_t i = next[cell(groups[g])]++;
    out.left[i] = groups[g].left;
    out.right[i] = groups[g].anchor_x;
    out.top[i] = groups[g].top;
    out.bottom[i] = groups[g].bottom;
    out.magnitude[i] = groups[g].magnitude;
  }
}

}  // namespace

ScoreMaps build_score_maps(const ColumnMap& edges, const ColumnMap& orientation, const EdgeBoxesParams& params) {
  ScoreMaps maps;
  maps.width = edges.width;
  maps.height = edges.height;
  maps.groups = group_edges(edges, orientation, params);
  build_integrals(edges, params.edge_min_mag, maps);
  maps.relative_rounding = std::numeric_limits<float>::epsilon() / 2 * (maps.groups.count() + 4.0);
  build_runs(edges.width, edges.height, maps);
  sort_into_cells(maps);
  maps.norm.resize((edges.width + edges.height) / 2 + 2);
  for (size_t i = 0; i < maps.norm.size(); ++i) maps.norm[i] = std::pow(1.0f / static_cast<float>(i), params.kappa);
  return maps;
}

}  // namespace avfast::edge_boxes
