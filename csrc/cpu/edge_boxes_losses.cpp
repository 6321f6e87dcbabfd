// Best paths from each group to those connected to it: a path counts for the boxes that hold all of it.
#include "edge_boxes_losses.h"

#include <algorithm>

namespace avfast::edge_boxes {
namespace {

// Beyond this, exact scores of the few boxes that need one are cheaper; maps that were not thinned have ten times more.
constexpr size_t kMostPaths = 8192;

struct Path {
  float weight;
  int32_t end;
  Extent extent;

  bool operator<(const Path& other) const { return weight < other.weight; }
};

class PathFinder {
 public:
  PathFinder(const EdgeGroups& groups, double unit) : groups_(groups), unit_(unit) {}

  // Appends the losses through a group: first its own mass, then paths by weight. Of two paths to a group, one that is
  // weaker and reaches further counts for no box that the other does not count for.
  void append(int32_t start, std::vector<Loss>& losses) {
    const size_t begin = losses.size();
    losses.push_back({around(start), start, mass_of(1, start)});
    extend({1, start, around(start)}, start);
    while (!candidates_.empty() && losses.size() <= kMostPaths) {
      std::pop_heap(candidates_.begin(), candidates_.end());
      const Path path = candidates_.back();
      candidates_.pop_back();
      const auto better = [&](const Loss& loss) { return loss.group == path.end && loss.path.within(path.extent); };
      if (std::any_of(losses.begin() + begin + 1, losses.end(), better)) continue;
      losses.push_back({path.extent, path.end, mass_of(path.weight, path.end)});
      extend(path, start);
    }
    candidates_.clear();
  }

 private:
  Extent around(int32_t g) const {
    const Group& group = groups_.groups[g];
    return {group.anchor_x, group.anchor_y, group.anchor_x, group.anchor_y};
  }

  uint32_t mass_of(float weight, int32_t g) const {
    return static_cast<uint32_t>(static_cast<double>(weight) * groups_.groups[g].magnitude / unit_);
  }

  // Weights are multiplied in the order in which Scorer follows links.
  void extend(const Path& path, int32_t start) {
    for (int32_t i = groups_.first[path.end]; i < groups_.first[path.end + 1]; ++i) {
      const Neighbour& link = groups_.neighbours[i];
      const float weight = path.weight * link.affinity;
      if (weight < kMinWeight || link.group == start) continue;
      const Extent end = around(link.group);
      candidates_.push_back({weight, link.group, path.end == start ? end : path.extent.with(end)});
      std::push_heap(candidates_.begin(), candidates_.end());
    }
  }

  const EdgeGroups& groups_;
  const double unit_;
  std::vector<Path> candidates_;
};

// `low` and `high`: where a path begins and ends across the lines.
template <typename Low, typename High>
LineLosses losses_of_runs(const std::vector<Loss>& losses, const std::vector<int32_t>& first, const Runs& runs,
                          const Low& low, const High& high) {
  LineLosses out;
  const auto add = [&](std::vector<int32_t>& bounds, const auto& keeps) {
    for (size_t run = 0; run < runs.lines.size(); ++run) {
      bounds.push_back(static_cast<int32_t>(out.losses.size()));
      for (int32_t i = first[runs.groups[run]]; i < first[runs.groups[run] + 1]; ++i)
        if (keeps(losses[i].path, runs.lines[run])) out.losses.push_back(losses[i]);
    }
    bounds.push_back(static_cast<int32_t>(out.losses.size()));
  };
  add(out.ahead, [&](const Extent& path, int32_t line) { return low(path) >= line; });
  add(out.behind, [&](const Extent& path, int32_t line) { return high(path) <= line; });
  return out;
}

}  // namespace

Losses find_losses(const EdgeGroups& groups, int width, int height, const Runs& rows, const Runs& columns) {
  if (std::max(width, height) > Extent::kMax) return {};
  double mass = 0;
  for (int32_t g = 1; g < groups.count(); ++g) mass += groups.groups[g].magnitude;
  const double unit = mass / (uint64_t{1} << 31);
  std::vector<Loss> losses;
  std::vector<int32_t> first{0};
  PathFinder finder(groups, unit);
  for (int32_t g = 0; g < groups.count(); ++g) {
    if (g > 0) finder.append(g, losses);
    if (losses.size() > kMostPaths) return {};
    first.push_back(static_cast<int32_t>(losses.size()));
  }
  return {losses_of_runs(
              losses, first, rows, [](const Extent& path) { return path.top(); },
              [](const Extent& path) { return path.bottom(); }),
          losses_of_runs(
              losses, first, columns, [](const Extent& path) { return path.left(); },
              [](const Extent& path) { return path.right(); }),
          unit};
}

}  // namespace avfast::edge_boxes
