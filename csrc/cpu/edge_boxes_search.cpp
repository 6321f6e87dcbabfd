// Best-first search over sliding windows. Each window has an upper bound on the score that refining it can reach; the
// window of largest bound is looked at more closely, until that bound is a score. Scores then come out in decreasing
// order, as greedy suppression takes them, and the search stops at the last box wanted.
#include "edge_boxes_search.h"

#include <algorithm>
#include <cmath>
#include <queue>
#include <string>

namespace avfast::edge_boxes {
namespace {

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

struct WindowShape {
  int w, h;
  int stride_x, stride_y;
};

constexpr double kMaxShapes = 1e5;
constexpr int64_t kMaxWindows = int64_t{1} << 28;

[[noreturn]] void throw_too_many() {
  throw ValueError(
      "alpha, min_box_area and max_aspect_ratio give more windows than can be searched; lower alpha or "
      "raise min_box_area");
}

// IoU alpha between neighbours in position, scale and aspect ratio.
std::vector<WindowShape> window_shapes(int width, int height, const EdgeBoxesParams& params) {
  const float scale_step = std::sqrt(1 / params.alpha), aspect_step = (1 + params.alpha) / (2 * params.alpha);
  const float position_step = (1 - params.alpha) / (1 + params.alpha), smallest = std::sqrt(params.min_box_area);
  const int aspects = static_cast<int>(std::log(params.max_aspect_ratio) / std::log(aspect_step * aspect_step));
  const int scales = static_cast<int>(std::ceil(std::log(std::max(width, height) / smallest) / std::log(scale_step)));
  std::vector<WindowShape> shapes;
  if (static_cast<double>(std::max(0, scales)) * aspects > kMaxShapes) throw_too_many();
  for (int s = 0; s < scales; ++s) {
    for (int a = -aspects; a <= aspects; ++a) {
      const float aspect = std::pow(aspect_step, static_cast<float>(a));
      const float size = smallest * std::pow(scale_step, static_cast<float>(s));
      const int w = static_cast<int>(size * aspect), h = static_cast<int>(size / aspect);
      shapes.push_back(
          {w, h, std::max(2, static_cast<int>(w * position_step)), std::max(2, static_cast<int>(h * position_step))});
    }
  }
  return shapes;
}

// A window on its way from a bound to a score.
struct Window {
  enum Next { kSplit, kConnect, kMove };

  Box box;
  float score = 0;  // of the box as refined so far; 0 before the first scoring
  Steps steps;
  Next next = kSplit;
};

struct Entry {
  float bound;
  int32_t index;  // of the window
  bool resolved;  // the bound is the score

  // The heap's top is the largest bound; of equal bounds what is unresolved, then what was generated first.
  bool operator<(const Entry& other) const {
    if (bound != other.bound) return bound < other.bound;
    if (resolved != other.resolved) return resolved;
    return index > other.index;
  }
};

float overlap(const Box& a, const Box& b) {
  const int w = std::min(a.x + a.w, b.x + b.w) - std::max(a.x, b.x);
  const int h = std::min(a.y + a.h, b.y + b.h) - std::max(a.y, b.y);
  const float shared = static_cast<float>(std::max(0, w)) * static_cast<float>(std::max(0, h));
  const float area_a = static_cast<float>(a.w) * static_cast<float>(a.h);
  const float area_b = static_cast<float>(b.w) * static_cast<float>(b.h);
  return shared / (area_a + area_b - shared);
}

// Greedy non-maximum suppression of boxes that come in decreasing order of score. Boxes are kept by the logarithm of
// their area, since boxes whose areas differ by more than beta overlap by less.
class Suppression {
 public:
  explicit Suppression(const EdgeBoxesParams& params)
      : beta_(params.beta), eta_(params.eta), log_step_(std::log(1 / params.beta)) {}

  bool keep(const Box& box) {
    if (off_) return true;
    const int bin = static_cast<int>(std::ceil(std::log(static_cast<float>(box.w) * box.h) / log_step_)) + 1;
    const int reach = static_cast<int>(std::ceil(std::log(1 / beta_) / log_step_));
    const int first = std::max(0, bin - reach), last = std::min(bin + reach, static_cast<int>(kept_.size()) - 1);
    for (int i = first; i <= last; ++i)
      for (const Box& other : kept_[i])
        if (overlap(box, other) > beta_) return false;
    if (bin >= static_cast<int>(kept_.size())) kept_.resize(bin + 1);
    kept_[bin].push_back(box);
    if (eta_ < 1 && beta_ > 0.5f) beta_ *= eta_;
    return true;
  }

 private:
  float beta_;
  const float eta_, log_step_;
  const bool off_ = beta_ > 0.99f;
  std::vector<std::vector<Box>> kept_;
};

class Search {
 public:
  Search(const ScoreMaps& maps, const EdgeBoxesParams& params, int threads);
  std::vector<Proposal> run();

 private:
  Steps first_steps(const Box& box) const {
    return {static_cast<int>(box.w * position_step_), static_cast<int>(box.h * position_step_)};
  }
  Box clip(int x, int y, const WindowShape& shape) const;
  Family family(const Box& box, const Steps& reach) const;
  float split_bound(const Box& box, const Steps& reach) const;
  bool score_first(Scorer& scorer, Window& window) const;
  void move_sides(Scorer& scorer, Window& window) const;
  Entry advance(Scorer& scorer, int32_t index);
  void advance_best();

  static constexpr size_t kBatch = 32;  // windows a thread

  const ScoreMaps& maps_;
  const EdgeBoxesParams& params_;
  const float position_step_ = (1 - params_.alpha) / (1 + params_.alpha);
  const float floor_ = params_.min_score > 0 ? std::nextafter(params_.min_score, 0.0f) : 0.0f;
  std::vector<Window> windows_;
  std::priority_queue<Entry> queue_;
  std::vector<Scorer> scorers_;
  std::vector<Entry> batch_;
};

Search::Search(const ScoreMaps& maps, const EdgeBoxesParams& params, int threads)
    : maps_(maps), params_(params), scorers_(threads, Scorer(maps)) {
  std::vector<Entry> entries;
  for (const WindowShape& shape : window_shapes(maps.width, maps.height, params)) {
    for (int x = 0; x < maps.width - shape.w + shape.stride_x; x += shape.stride_x) {
      for (int y = 0; y < maps.height - shape.h + shape.stride_y; y += shape.stride_y) {
        const Box box = clip(x, y, shape);
        const Steps steps = first_steps(box);
        const float bound = anchored_bound(maps, family(box, steps.reach()));
        if (bound <= floor_) continue;
        entries.push_back({bound, static_cast<int32_t>(windows_.size()), false});
        windows_.push_back({box, 0, steps, Window::kSplit});
      }
    }
  }
  queue_ = std::priority_queue<Entry>(std::less<Entry>(), std::move(entries));
}

Box Search::clip(int x, int y, const WindowShape& shape) const {
  const int x0 = std::min(x, maps_.width - 1), y0 = std::min(y, maps_.height - 1);
  return {x0, y0, std::min(x + shape.w, maps_.width - 1) - x0, std::min(y + shape.h, maps_.height - 1) - y0};
}

Family Search::family(const Box& box, const Steps& reach) const {
  const auto x = [&](int value) { return std::clamp(value, 0, maps_.width - 1); };
  const auto y = [&](int value) { return std::clamp(value, 0, maps_.height - 1); };
  const int right = box.x + box.w, bottom = box.y + box.h;
  return {{x(box.x - reach.x), x(box.x + reach.x)},
          {x(right - reach.x), x(right + reach.x)},
          {y(box.y - reach.y), y(box.y + reach.y)},
          {y(bottom - reach.y), y(bottom + reach.y)}};
}

// Of the sixteen families in which each side has moved outwards or inwards, the largest bound.
float Search::split_bound(const Box& box, const Steps& reach) const {
  const Family all = family(box, reach);
  float best = 0;
  for (int k = 0; k < 16; ++k) {
    Family part = all;
    part.left[k & 1 ? 1 : 0] = box.x;
    part.right[k & 2 ? 1 : 0] = box.x + box.w;
    part.top[k & 4 ? 1 : 0] = box.y;
    part.bottom[k & 8 ? 1 : 0] = box.y + box.h;
    best = std::max(best, anchored_bound(maps_, part));
  }
  return best;
}

bool Search::score_first(Scorer& scorer, Window& window) const {
  window.score = scorer.score(window.box, floor_);
  return window.score > 0;
}

// One round of refinement: each side is moved outwards, else inwards, where that scores more.
void Search::move_sides(Scorer& scorer, Window& window) const {
  const auto better = [&](int dx, int dy, int dw, int dh) {
    Box moved{window.box.x + dx, window.box.y + dy, window.box.w + dw, window.box.h + dh};
    const float score = scorer.score(moved, window.score);
    if (score <= window.score) return false;
    window.box = moved;
    window.score = score;
    return true;
  };
  const Steps s = window.steps;
  if (!better(0, -s.y, 0, s.y)) better(0, s.y, 0, -s.y);
  if (!better(0, 0, 0, s.y)) better(0, 0, 0, -s.y);
  if (!better(-s.x, 0, s.x, 0)) better(s.x, 0, -s.x, 0);
  if (!better(0, 0, s.x, 0)) better(0, 0, -s.x, 0);
}

// Looks at a window more closely: cheap bounds first, then a round of refinement.
Entry Search::advance(Scorer& scorer, int32_t index) {
  Window& window = windows_[index];
  const auto at_most = [&](float bound) {
    bound = std::max(bound, window.score);
    return Entry{bound, index, window.score > 0 && bound == window.score};
  };
  if (window.next == Window::kSplit) {
    window.next = Window::kConnect;
    return at_most(split_bound(window.box, window.steps.reach()));
  }
  if (window.next == Window::kConnect) {
    window.next = Window::kMove;
    return at_most(scorer.connected_bound(family(window.box, window.steps.reach())));
  }
  if (window.score == 0 && !score_first(scorer, window)) return {0, index, false};
  if (!window.steps.halve()) return {window.score, index, true};
  move_sides(scorer, window);
  window.next = Window::kConnect;
  return at_most(split_bound(window.box, window.steps.reach()));
}

// Takes unresolved windows off the top of the queue and puts them back with tighter bounds.
void Search::advance_best() {
  batch_.clear();
  while (!queue_.empty() && !queue_.top().resolved && batch_.size() < kBatch * scorers_.size()) {
    batch_.push_back(queue_.top());
    queue_.pop();
  }
  const int size = static_cast<int>(batch_.size()), threads = static_cast<int>(scorers_.size());
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1 && size > threads)
  for (int t = 0; t < threads; ++t)
    for (int i = t; i < size; i += threads) {
      const Entry entry = advance(scorers_[t], batch_[i].index);
      batch_[i] = {std::min(entry.bound, batch_[i].bound), entry.index, entry.resolved};
    }
  for (const Entry& entry : batch_)
    if (entry.bound > floor_) queue_.push(entry);
}

std::vector<Proposal> Search::run() {
  std::vector<Proposal> proposals;
  Suppression suppression(params_);
  while (!queue_.empty() && static_cast<int64_t>(proposals.size()) < params_.max_boxes) {
    if (!queue_.top().resolved) {
      advance_best();
      continue;
    }
    const Window& window = windows_[queue_.top().index];
    queue_.pop();
    if (suppression.keep(window.box)) proposals.push_back({window.box, window.score});
  }
  return proposals;
}

}  // namespace

int64_t count_windows(int width, int height, const EdgeBoxesParams& params) {
  const auto places = [](int length, int window, int stride) -> int64_t {
    return std::max(0, (length - window + 2 * stride - 1) / stride);
  };
  int64_t count = 0;
  for (const WindowShape& shape : window_shapes(width, height, params)) {
    count += places(width, shape.w, shape.stride_x) * places(height, shape.h, shape.stride_y);
    if (count > kMaxWindows) throw_too_many();
  }
  return count;
}

std::vector<Proposal> search(const ScoreMaps& maps, const EdgeBoxesParams& params, int threads) {
  return Search(maps, params, threads).run();
}

}  // namespace avfast::edge_boxes
