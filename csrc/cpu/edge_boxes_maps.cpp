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

// The row or column of each run.
struct RunLines {
  std::vector<int32_t> rows, columns;
};

// Groups met along each column and each row, a run of pixels of one group counted once. Both are found column by
// column, since rows lie far apart in memory.
RunLines build_runs(int width, int height, ScoreMaps& maps) {
  RunLines lines;
  const std::vector<int32_t>& ids = maps.groups.ids;
  std::vector<int32_t> last(height, 0), next(height + 1, 0);
  const auto for_each_run_in_rows = [&](const auto& visit) {
    std::fill(last.begin(), last.end(), 0);
    for (int x = 0; x < width; ++x) {
      const int64_t column = static_cast<int64_t>(x) * height;
      for (int y = 0; y < height; ++y) {
        const int32_t id = ids[column + y];
        visit(column + y, y, id, id != 0 && id != last[y]);
        last[y] = id;
      }
    }
  };
  for_each_run_in_rows([&](int64_t, int y, int32_t, bool begins) { next[y + 1] += begins; });
  for (int y = 0; y < height; ++y) next[y + 1] += next[y];
  maps.row_runs.resize(next[height] + 1);  // and one more, to write where no run begins
  maps.run_ends.resize(ids.size());
  for_each_run_in_rows([&](int64_t p, int y, int32_t id, bool begins) {
    maps.row_runs[next[y]] = begins ? id : maps.row_runs[next[y]];
    next[y] += begins;
    maps.run_ends[p].row = 2 * static_cast<uint32_t>(next[y]) + (id != 0);
  });
  for (int y = 0; y < height; ++y) lines.rows.resize(next[y], y);
  for (int x = 0; x < width; ++x) {
    int32_t previous = 0;
    for (int64_t p = static_cast<int64_t>(x) * height, end = p + height; p < end; ++p) {
      if (ids[p] != 0 && ids[p] != previous) maps.column_runs.push_back(ids[p]);
      previous = ids[p];
      maps.run_ends[p].column = 2 * static_cast<uint32_t>(maps.column_runs.size()) + (ids[p] != 0);
    }
    lines.columns.resize(maps.column_runs.size(), x);
  }
  return lines;
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
  const RunLines lines = build_runs(edges.width, edges.height, maps);
  maps.losses = find_losses(maps.groups, edges.width, edges.height, {maps.row_runs, lines.rows},
                            {maps.column_runs, lines.columns});
  sort_into_cells(maps);
  maps.norm.resize((edges.width + edges.height) / 2 + 2);
  for (size_t i = 0; i < maps.norm.size(); ++i) maps.norm[i] = std::pow(1.0f / static_cast<float>(i), params.kappa);
  return maps;
}

}  // namespace avfast::edge_boxes
