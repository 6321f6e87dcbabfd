// Search over sliding windows against a threshold, a guess at the last score wanted. A window is refined only as far as
// it takes to see that it cannot exceed the threshold; where too few boxes exceed it, it is lowered.
#include "edge_boxes_search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "edge_boxes_bound.h"

namespace avfast::edge_boxes {
namespace {

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
  Box box;
  float score = 0;  // of the box as refined so far; 0 before the first scoring
  Steps steps;
  bool promising = false;  // its bound exceeds the threshold even at a closer look
};

struct Entry {
  float bound;
  int32_t index;  // of the window
  bool resolved;  // the bound is the score

  // The largest bound first; of equal bounds what was generated first.
  bool operator<(const Entry& other) const { return bound != other.bound ? bound > other.bound : index < other.index; }
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
  // Scratch memory of one thread.
  struct Worker {
    explicit Worker(const ScoreMaps& maps) : scorer(maps), bounds(maps) {}
    Scorer scorer;
    Bounds bounds;
    int32_t followed = -1;  // a window
    float excluded = 1;     // running mean of how often a closer look excludes a window between rounds
    int32_t skipped = 0;    // looks

    void follow(int32_t index, const Window& window) {
      if (followed == index) return;
      followed = index;
      bounds.follow(window.box, window.steps);
    }
  };

  Steps first_steps(int w, int h) const {
    return {static_cast<int>(w * position_step_), static_cast<int>(h * position_step_)};
  }
  void add_windows(const WindowShape& shape);
  void move_sides(Scorer& scorer, Window& window) const;
  Entry look_closer(Worker& worker, int32_t index);
  Entry advance(Worker& worker, int32_t index);
  void resolve(Worker& worker, Entry& entry);
  void first_guess();
  void resolve_above_threshold();
  void raise_threshold();
  std::vector<Proposal> best_found();

  static constexpr size_t kBatch = 64;  // windows between guesses; four times that for each of several threads

  const ScoreMaps& maps_;
  const EdgeBoxesParams& params_;
  const float position_step_ = (1 - params_.alpha) / (1 + params_.alpha);
  const float floor_ = params_.min_score > 0 ? std::nextafter(params_.min_score, 0.0f) : 0.0f;
  float threshold_ = floor_;
  std::vector<Window> windows_;
  std::vector<Entry> waiting_;  // neither resolved nor out of the question
  std::vector<Entry> found_;    // resolved
  size_t guessed_from_ = 0;     // how many were, when the threshold was last guessed
  std::vector<Worker> workers_;
};

Search::Search(const ScoreMaps& maps, const EdgeBoxesParams& params, int threads)
    : maps_(maps), params_(params), workers_(threads, Worker(maps)) {
  for (const WindowShape& shape : window_shapes(maps.width, maps.height, params)) add_windows(shape);
  first_guess();
}

void Search::add_windows(const WindowShape& shape) {
  struct Places {
    std::vector<int> start, size;
    std::vector<Span> span;
  };
  // Windows are clipped to the frame, which shortens their steps; the whole window's reach is no less.
  const Steps reach = first_steps(shape.w, shape.h).reach();
  const auto places = [](int window, int stride, int reach, int length) {
    Places out;
    for (int i = 0; i < length - window + stride; i += stride) {
      const int start = std::min(i, length - 1), end = std::min(i + window, length - 1);
      out.start.push_back(start);
      out.size.push_back(end - start);
      out.span.push_back(Span::around(start, end, reach, length));
    }
    return out;
  };
  const Places columns = places(shape.w, shape.stride_x, reach.x, maps_.width);
  const Places rows = places(shape.h, shape.stride_y, reach.y, maps_.height);
  std::vector<float> bounds(rows.span.size());
  for (size_t x = 0; x < columns.span.size(); ++x) {
    workers_[0].bounds.column(columns.span[x], rows.span, bounds.data());
    for (size_t y = 0; y < bounds.size(); ++y) {
      if (!(bounds[y] > floor_)) continue;
      const Box box{columns.start[x], rows.start[y], columns.size[x], rows.size[y]};
      waiting_.push_back({bounds[y], static_cast<int32_t>(windows_.size()), false});
      windows_.push_back({box, 0, first_steps(box.w, box.h), false});
    }
  }
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

// A tighter bound, cut off at the threshold.
Entry Search::look_closer(Worker& worker, int32_t index) {
  Window& window = windows_[index];
  const float least = std::max(threshold_, window.score);
  worker.follow(index, window);
  const float bound = worker.bounds.contained(window.box, window.steps, least);
  window.promising = bound > least;
  return {bound, index, bound == window.score};
}

// Bounds a window more tightly where that was not tried, else refines it by a round.
Entry Search::advance(Worker& worker, int32_t index) {
  Window& window = windows_[index];
  if (!window.promising) return look_closer(worker, index);
  if (window.score == 0) window.score = worker.scorer.score(window.box, floor_);
  if (window.score == 0) return {0, index, false};
  if (!window.steps.halve()) return {window.score, index, true};
  move_sides(worker.scorer, window);
  constexpr float kWorthALook = 0.15f, kMemory = 1.0f / 64;
  // Now and then one looks all the same, since the threshold rises.
  if (worker.excluded < kWorthALook && ++worker.skipped % 8 != 0)
    return {std::numeric_limits<float>::infinity(), index, false};
  const Entry entry = look_closer(worker, index);
  worker.excluded += kMemory * (static_cast<float>(!window.promising) - worker.excluded);
  return entry;
}

// Advances a window until it is resolved or cannot exceed the threshold.
void Search::resolve(Worker& worker, Entry& entry) {
  while (!entry.resolved && entry.bound > threshold_) {
    const Entry next = advance(worker, entry.index);
    entry = {std::min(next.bound, entry.bound), next.index, next.resolved};
  }
}

// Resolves the most promising of a sample of windows.
void Search::first_guess() {
  const size_t wanted = static_cast<size_t>(params_.max_boxes);
  const size_t sample = 16 * wanted + 256, top = std::max(sample, waiting_.size() / 4);
  if (top >= waiting_.size()) return;
  std::nth_element(waiting_.begin(), waiting_.begin() + top, waiting_.end());
  for (size_t i = 0; i < sample; ++i) {
    std::swap(waiting_[i], waiting_[i * (top / sample)]);
    waiting_[i].bound = std::min(waiting_[i].bound, look_closer(workers_[0], waiting_[i].index).bound);
  }
  const size_t resolved = 4 * wanted + 16;
  std::nth_element(waiting_.begin(), waiting_.begin() + resolved, waiting_.begin() + sample);
  for (size_t i = 0; i < resolved; ++i) {
    resolve(workers_[0], waiting_[i]);
    if (waiting_[i].resolved) found_.push_back(waiting_[i]);
  }
  waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), [](const Entry& entry) { return entry.resolved; }),
                 waiting_.end());
  raise_threshold();
}

// Windows of larger bounds go first and raise the threshold for the others.
void Search::resolve_above_threshold() {
  const auto above =
      std::partition(waiting_.begin(), waiting_.end(), [&](const Entry& entry) { return entry.bound <= threshold_; });
  std::vector<Entry> entries(above, waiting_.end());
  waiting_.erase(above, waiting_.end());
  std::sort(entries.begin(), entries.end());
  const int threads = static_cast<int>(workers_.size());
  const size_t batch_size = threads > 1 ? 4 * kBatch * threads : kBatch;
  for (size_t begin = 0; begin < entries.size(); begin += batch_size) {
    const int64_t size = static_cast<int64_t>(std::min(batch_size, entries.size() - begin));
    Entry* batch = &entries[begin];
    if (batch->bound <= threshold_) {
      waiting_.insert(waiting_.end(), entries.begin() + begin, entries.end());
      break;
    }
    std::atomic<int64_t> next{0};
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
    for (int t = 0; t < threads; ++t)
      for (int64_t i; (i = next++) < size;) resolve(workers_[t], batch[i]);
    for (int64_t i = 0; i < size; ++i)
      if (batch[i].resolved || batch[i].bound > floor_) (batch[i].resolved ? found_ : waiting_).push_back(batch[i]);
    if (found_.size() > guessed_from_ + guessed_from_ / 8) raise_threshold();
  }
}

void Search::raise_threshold() {
  guessed_from_ = found_.size();
  const std::vector<Proposal> best = best_found();
  if (static_cast<int64_t>(best.size()) == params_.max_boxes)
    threshold_ = std::max(threshold_, std::nextafter(best.back().score, 0.0f));
}

std::vector<Proposal> Search::best_found() {
  std::sort(found_.begin(), found_.end());
  std::vector<Proposal> best;
  Suppression suppression(params_);
  for (const Entry& entry : found_) {
    if (static_cast<int64_t>(best.size()) == params_.max_boxes || entry.bound <= threshold_) break;
    const Box& box = windows_[entry.index].box;
    if (suppression.keep(box)) best.push_back({box, entry.bound});
  }
  return best;
}

std::vector<Proposal> Search::run() {
  while (true) {
    resolve_above_threshold();
    std::vector<Proposal> best = best_found();
    if (static_cast<int64_t>(best.size()) == params_.max_boxes || threshold_ <= floor_) return best;
    threshold_ = std::max(floor_, threshold_ * 0.8f);
  }
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
