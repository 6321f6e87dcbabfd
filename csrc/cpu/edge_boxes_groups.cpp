// Greedy grouping of edge pixels and the affinities of section 3.1 of the paper.
#include "edge_boxes_groups.h"

#include <algorithm>
#include <cmath>

namespace avfast::edge_boxes {
namespace {

constexpr float kPi = 3.14159265358979323846f;
constexpr int32_t kNoEdge = -1;  // while grouping: 0 is an edge pixel of no group yet

// In half turns: 0 for parallel, 0.5 for perpendicular.
float orientation_difference(float a, float b) {
  const float difference = std::fabs(a - b) / kPi;
  return difference > 0.5f ? 1 - difference : difference;
}

std::vector<int32_t> mark_edge_pixels(const ColumnMap& edges, float edge_min_mag) {
  std::vector<int32_t> ids(edges.values.size(), kNoEdge);
  for (int x = 1; x < edges.width - 1; ++x)
    for (int64_t p = edges.at(x, 1); p < edges.at(x, edges.height - 1); ++p)
      if (edges.values[p] > edge_min_mag) ids[p] = 0;
  return ids;
}

// Grows groups one pixel at a time, always to the candidate that turns least from the pixel that found it.
class GroupGrower {
 public:
  GroupGrower(const ColumnMap& orientation, float merge_thr, std::vector<int32_t>& ids)
      : orientation_(orientation), merge_thr_(merge_thr), ids_(ids), seen_(ids.size(), 0) {}

  void grow(int64_t p, int32_t group) {
    candidates_.clear();
    int32_t found = 0;
    for (float turned = 0; turned < merge_thr_;) {
      ids_[p] = group;
      found = add_candidates(p, group, found);
      if (candidates_.empty()) return;
      std::pop_heap(candidates_.begin(), candidates_.end());
      p = candidates_.back().pixel;
      turned += candidates_.back().turn;
      candidates_.pop_back();
    }
  }

 private:
  struct Candidate {
    float turn;
    int32_t order;
    int64_t pixel;
    // The heap's top is the smallest turn, of equals the one found first.
    bool operator<(const Candidate& other) const {
      return turn != other.turn ? turn > other.turn : order > other.order;
    }
  };

  int32_t add_candidates(int64_t p, int32_t group, int32_t found) {
    for (int dx = -1; dx <= 1; ++dx) {
      for (int dy = -1; dy <= 1; ++dy) {
        const int64_t q = p + dx * static_cast<int64_t>(orientation_.height) + dy;
        if (ids_[q] != 0 || seen_[q] == group) continue;
        seen_[q] = group;
        candidates_.push_back({orientation_difference(orientation_.values[q], orientation_.values[p]), found++, q});
        std::push_heap(candidates_.begin(), candidates_.end());
      }
    }
    return found;
  }

  const ColumnMap& orientation_;
  const float merge_thr_;
  std::vector<int32_t>& ids_;
  std::vector<int32_t> seen_;  // the last group to have had this pixel as a candidate
  std::vector<Candidate> candidates_;
};

std::vector<float> group_magnitudes(const ColumnMap& edges, const std::vector<int32_t>& ids, int32_t count) {
  std::vector<float> magnitude(count, 0.0f);
  for (size_t p = 0; p < ids.size(); ++p)
    if (ids[p] > 0) magnitude[ids[p]] += edges.values[p];
  return magnitude;
}

// Gives the pixels of weak groups to the neighbouring group of most similar orientation, wave by wave.
void merge_weak_groups(const ColumnMap& edges, const ColumnMap& orientation, float cluster_min_mag, int32_t count,
                       std::vector<int32_t>& ids) {
  const std::vector<float> magnitude = group_magnitudes(edges, ids, count);
  std::vector<int64_t> free;
  for (size_t p = 0; p < ids.size(); ++p) {
    if (ids[p] > 0 && magnitude[ids[p]] <= cluster_min_mag) {
      ids[p] = 0;
      free.push_back(static_cast<int64_t>(p));
    }
  }
  const auto adopt = [&](int64_t p) {
    float least = 1000;
    int32_t group = 0;
    for (int dx = -1; dx <= 1; ++dx) {
      for (int dy = -1; dy <= 1; ++dy) {
        const int64_t q = p + dx * static_cast<int64_t>(edges.height) + dy;
        if (ids[q] <= 0) continue;
        const float turn = orientation_difference(orientation.values[q], orientation.values[p]);
        if (turn < least) {
          least = turn;
          group = ids[q];
        }
      }
    }
    ids[p] = group;
    return group > 0;
  };
  for (size_t before = free.size() + 1; free.size() < before;) {
    before = free.size();
    free.erase(std::remove_if(free.begin(), free.end(), adopt), free.end());
  }
}

// Renumbers the groups that still have pixels from 1 on, keeping their order; returns 1 + their number.
int32_t renumber(const ColumnMap& edges, int32_t count, std::vector<int32_t>& ids) {
  const std::vector<float> magnitude = group_magnitudes(edges, ids, count);
  std::vector<int32_t> renumbered(count, 0);
  int32_t next = 1;
  for (int32_t g = 0; g < count; ++g)
    if (magnitude[g] > 0) renumbered[g] = next++;
  for (int32_t& id : ids) id = id > 0 ? renumbered[id] : 0;
  return next;
}

struct Moments {
  std::vector<float> x, y, orientation;  // [G] weighted means
};

// Fills groups.groups and returns the mean position and orientation of each.
Moments measure_groups(const ColumnMap& edges, const ColumnMap& orientation, int32_t count, EdgeGroups& groups) {
  Moments mean{std::vector<float>(count), std::vector<float>(count), std::vector<float>(count)};
  std::vector<float> cosine(count), sine(count);
  groups.groups.assign(count, Group{0.0f, 0, 0, edges.width, edges.height, 0});
  for (int x = 1; x < edges.width - 1; ++x) {
    for (int y = 1; y < edges.height - 1; ++y) {
      const int64_t p = edges.at(x, y);
      const int32_t g = groups.ids[p];
      if (g == 0) continue;
      const float m = edges.values[p], o = orientation.values[p];
      Group& group = groups.groups[g];
      group = {group.magnitude + m, x, y, std::min(group.left, x), std::min(group.top, y), std::max(group.bottom, y)};
      cosine[g] += m * std::cos(2 * o);  // orientation is modulo pi, so its double is an angle
      sine[g] += m * std::sin(2 * o);
      mean.x[g] += m * x;
      mean.y[g] += m * y;
    }
  }
  for (int32_t g = 1; g < count; ++g) {
    const float m = groups.groups[g].magnitude;
    mean.x[g] /= m;
    mean.y[g] /= m;
    mean.orientation[g] = std::atan2(sine[g] / m, cosine[g] / m) / 2;
  }
  return mean;
}

// |cos(o_i - o_ij) cos(o_j - o_ij)|^gamma, where o_ij is the direction between the mean positions.
float affinity(const Moments& mean, int32_t i, int32_t j, float gamma) {
  const float between = std::atan2(mean.y[i] - mean.y[j], mean.x[i] - mean.x[j]) + kPi / 2.0f;
  const float a = std::fabs(std::cos(mean.orientation[i] - between) * std::cos(mean.orientation[j] - between));
  return std::pow(a, gamma);
}

// Links groups with pixels at most two apart, in order of discovery.
void link_groups(const ColumnMap& edges, const Moments& mean, float gamma, EdgeGroups& groups) {
  constexpr int kRadius = 2;
  struct Link {
    int32_t from, to;  // from < to
    int32_t previous;  // the link found before this one at `from`, or -1
    float affinity;
  };
  std::vector<Link> links;
  std::vector<int32_t> last(groups.count(), -1);
  const auto add = [&](int32_t from, int32_t to) {
    for (int32_t l = last[from]; l >= 0; l = links[l].previous)
      if (links[l].to == to) return;
    links.push_back({from, to, last[from], affinity(mean, from, to, gamma)});
    last[from] = static_cast<int32_t>(links.size()) - 1;
  };
  for (int x = kRadius; x < edges.width - kRadius; ++x) {
    for (int y = kRadius; y < edges.height - kRadius; ++y) {
      const int32_t from = groups.ids[edges.at(x, y)];
      if (from == 0) continue;
      for (int dx = -kRadius; dx <= kRadius; ++dx) {
        const int32_t* column = &groups.ids[edges.at(x + dx, y - kRadius)];
        for (int k = 0; k <= 2 * kRadius; ++k)
          if (column[k] > from) add(from, column[k]);
      }
    }
  }
  groups.first.assign(groups.count() + 1, 0);
  for (const Link& link : links) {
    if (link.affinity < kMinWeight) continue;
    ++groups.first[link.from + 1];
    ++groups.first[link.to + 1];
  }
  for (int32_t g = 0; g < groups.count(); ++g) groups.first[g + 1] += groups.first[g];
  groups.neighbours.resize(groups.first.back());
  std::vector<int32_t> next(groups.first.begin(), groups.first.end() - 1);
  for (const Link& link : links) {
    if (link.affinity < kMinWeight) continue;
    groups.neighbours[next[link.from]++] = {link.to, link.affinity};
    groups.neighbours[next[link.to]++] = {link.from, link.affinity};
  }
}

}  // namespace

EdgeGroups group_edges(const ColumnMap& edges, const ColumnMap& orientation, const EdgeBoxesParams& params) {
  EdgeGroups groups;
  groups.ids = mark_edge_pixels(edges, params.edge_min_mag);
  GroupGrower grower(orientation, params.edge_merge_thr, groups.ids);
  int32_t count = 1;
  for (int64_t p = 0; p < static_cast<int64_t>(groups.ids.size()); ++p)
    if (groups.ids[p] == 0) grower.grow(p, count++);
  merge_weak_groups(edges, orientation, params.cluster_min_mag, count, groups.ids);
  count = renumber(edges, count, groups.ids);
  const Moments mean = measure_groups(edges, orientation, count, groups);
  link_groups(edges, mean, params.gamma, groups);
  return groups;
}

}  // namespace avfast::edge_boxes
