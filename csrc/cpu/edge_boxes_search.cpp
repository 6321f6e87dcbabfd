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

// Running mean of how often something came true.
class Rate {
 public:
  explicit Rate(float value) : value_(value) {}
  operator float() const { return value_; }
  void add(bool outcome) { value_ += kMemory * (static_cast<float>(outcome) - value_); }

 private:
  static constexpr float kMemory = 1.0f / 32;
  float value_;
};

// A window on its way from a bound to a score.
struct Window {
  Box box;
  Score score;  // of the box as refined so far; 0 before the first scoring
  Steps steps;
  bool promising = false;  // its bound exceeds the threshold even at a closer look
};

struct Entry {
  float bound;
  int32_t index;  // of the window
  bool resolved;  // the window is refined to the end

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

  bool covers(const Box& box) const {
    if (off_) return false;
    const int bin = bin_of(box), reach = static_cast<int>(std::ceil(std::log(1 / beta_) / log_step_));
    const int first = std::max(0, bin - reach), last = std::min(bin + reach, static_cast<int>(kept_.size()) - 1);
    for (int i = first; i <= last; ++i)
      for (const Box& other : kept_[i])
        if (overlap(box, other) > beta_) return true;
    return false;
  }

  void add(const Box& box) {
    if (off_) return;
    const int bin = bin_of(box);
    if (bin >= static_cast<int>(kept_.size())) kept_.resize(bin + 1);
    kept_[bin].push_back(box);
    if (eta_ < 1 && beta_ > 0.5f) beta_ *= eta_;
  }

 private:
  int bin_of(const Box& box) const {
    return static_cast<int>(std::ceil(std::log(static_cast<float>(box.w) * box.h) / log_step_)) + 1;
  }

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
    Rate zero{0};                           // windows that score nothing to begin with
    Rate excluded[2] = {Rate(1), Rate(1)};  // by a closer look before the first scoring, and after that
    int32_t skipped = 0;                    // looks

    // Whether a closer look at a window, scored or not, excludes enough of them to be worth its time.
    bool worth_a_look(bool scored) {
      constexpr float kLeast = 0.15f;
      // Now and then one looks all the same, since the threshold rises.
      return excluded[scored] > std::max(kLeast, scored ? 0.0f : static_cast<float>(zero)) || ++skipped % 16 == 0;
    }
  };

  Steps first_steps(int w, int h) const {
    return {static_cast<int>(w * position_step_), static_cast<int>(h * position_step_)};
  }
  void add_windows(const WindowShape& shape);
  bool move_to(Scorer& scorer, Window& window, Box moved) const;
  void move_sides(Scorer& scorer, Window& window) const;
  bool worth_a_look(Worker& worker, const Window& window) const;
  Entry look_closer(Worker& worker, int32_t index);
  Entry advance(Worker& worker, int32_t index);
  void step(Worker& worker, Entry& entry) {
    const Entry next = advance(worker, entry.index);
    entry = {std::min(next.bound, entry.bound), next.index, next.resolved};
  }
  void score_first(Worker& worker, Entry& entry);
  void resolve(Worker& worker, Entry& entry);
  void sort_by_score(std::vector<Entry>& entries) const;
  template <typename Visit>
  void for_each(size_t begin, size_t end, const Visit& visit);
  void put(const Entry& entry);
  size_t first_sample() const { return 16 * static_cast<size_t>(params_.max_boxes) + 256; }
  void first_guess();
  void resolve_all(std::vector<Entry>& entries);
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
      windows_.push_back({box, {}, first_steps(box.w, box.h), false});
    }
  }
}

void make_exact(Scorer& scorer, Box box, Score& score, float floor = 0) {
  if (!score.exact()) score.low = score.high = scorer.score(box, floor);
}

// Takes the moved box in place of the window's where it scores more.
bool Search::move_to(Scorer& scorer, Window& window, Box moved) const {
  Score score = scorer.estimate(moved, window.score.low);
  if (score.high <= window.score.low || moved == window.box) return false;
  if (score.low <= window.score.high) {
    make_exact(scorer, window.box, window.score);
    make_exact(scorer, moved, score);
    if (score.high <= window.score.high) return false;
  }
  window.box = moved;
  window.score = score;
  return true;
}

// One round of refinement: each side is moved outwards, else inwards, where that scores more.
void Search::move_sides(Scorer& scorer, Window& window) const {
  const auto better = [&](int dx, int dy, int dw, int dh) {
    return move_to(scorer, window, {window.box.x + dx, window.box.y + dy, window.box.w + dw, window.box.h + dh});
  };
  const Steps s = window.steps;
  if (!better(0, -s.y, 0, s.y)) better(0, s.y, 0, -s.y);
  if (!better(0, 0, 0, s.y)) better(0, 0, 0, -s.y);
  if (!better(-s.x, 0, s.x, 0)) better(s.x, 0, -s.x, 0);
  if (!better(0, 0, s.x, 0)) better(0, 0, -s.x, 0);
}

// Where scores are estimated, a round of refinement costs less than a look.
bool Search::worth_a_look(Worker& worker, const Window& window) const {
  return !maps_.losses.known() && !window.promising && worker.worth_a_look(window.score.high > 0);
}

// A tighter bound, cut off at the threshold.
Entry Search::look_closer(Worker& worker, int32_t index) {
  Window& window = windows_[index];
  const float least = std::max(threshold_, window.score.low);
  worker.bounds.follow(window.box, window.steps);
  const float bound = worker.bounds.contained(window.box, window.steps, least);
  window.promising = bound > least;
  worker.excluded[window.score.high > 0].add(!window.promising);
  return {bound, index, bound == window.score.low};
}

// Bounds a window more tightly, or scores it, or refines it by a round.
Entry Search::advance(Worker& worker, int32_t index) {
  constexpr float kAsBefore = std::numeric_limits<float>::infinity();
  Window& window = windows_[index];
  if (worth_a_look(worker, window)) return look_closer(worker, index);
  if (window.score.high == 0) {
    window.score = worker.scorer.estimate(window.box, floor_);
    if (window.score.low <= floor_) make_exact(worker.scorer, window.box, window.score, floor_);
    worker.zero.add(window.score.high == 0);
    return {window.score.high > 0 ? kAsBefore : 0, index, false};
  }
  if (!window.steps.halve()) return {window.score.high, index, true};
  move_sides(worker.scorer, window);
  window.promising = false;
  return {kAsBefore, index, false};
}

// Advances a window until it is scored or cannot exceed the threshold.
void Search::score_first(Worker& worker, Entry& entry) {
  while (entry.bound > threshold_ && windows_[entry.index].score.high == 0) step(worker, entry);
}

// Advances a window until it is resolved or cannot exceed the threshold.
void Search::resolve(Worker& worker, Entry& entry) {
  while (!entry.resolved && entry.bound > threshold_) step(worker, entry);
}

// Best scores first: what scores well as it is tends to when refined, which raises the threshold soon.
void Search::sort_by_score(std::vector<Entry>& entries) const {
  std::sort(entries.begin(), entries.end(), [&](const Entry& a, const Entry& b) {
    const float score_a = windows_[a.index].score.low, score_b = windows_[b.index].score.low;
    return score_a != score_b ? score_a > score_b : a.index < b.index;
  });
}

// Resolves the most promising of a sample of windows.
void Search::first_guess() {
  const size_t wanted = static_cast<size_t>(params_.max_boxes);
  const size_t sample = first_sample(), top = std::max(sample, waiting_.size() / 4);
  if (top >= waiting_.size()) return;
  std::nth_element(waiting_.begin(), waiting_.begin() + top, waiting_.end());
  for (size_t i = 0; i < sample; ++i) std::swap(waiting_[i], waiting_[i * (top / sample)]);
  std::vector<Entry> entries(waiting_.begin(), waiting_.begin() + sample);
  waiting_.erase(waiting_.begin(), waiting_.begin() + sample);
  for (Entry& entry : entries) score_first(workers_[0], entry);
  sort_by_score(entries);
  for (size_t i = 0; i < sample; ++i) {
    if (i < 4 * wanted + 16) resolve(workers_[0], entries[i]);
    put(entries[i]);
  }
  raise_threshold();
}

void Search::put(const Entry& entry) {
  if (entry.bound > floor_) (entry.resolved ? found_ : waiting_).push_back(entry);
}

// Calls visit(worker, index) for begin .. end - 1 from all threads.
template <typename Visit>
void Search::for_each(size_t begin, size_t end, const Visit& visit) {
  const int threads = static_cast<int>(workers_.size());
  std::atomic<size_t> next{begin};
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
  for (int t = 0; t < threads; ++t)
    for (size_t i; (i = next++) < end;) visit(workers_[t], i);
}

// Windows of larger bounds go first and raise the threshold for the others.
void Search::resolve_above_threshold() {
  for (size_t size = first_sample();; size *= 2) {
    auto above =
        std::partition(waiting_.begin(), waiting_.end(), [&](const Entry& entry) { return entry.bound <= threshold_; });
    if (above == waiting_.end()) return;
    if (static_cast<size_t>(waiting_.end() - above) > size) {
      std::nth_element(above, waiting_.end() - size, waiting_.end(),
                       [](const Entry& a, const Entry& b) { return b < a; });
      above = waiting_.end() - size;
    }
    std::vector<Entry> entries(above, waiting_.end());
    waiting_.erase(above, waiting_.end());
    resolve_all(entries);
  }
}

void Search::resolve_all(std::vector<Entry>& entries) {
  for_each(0, entries.size(), [&](Worker& worker, size_t i) { score_first(worker, entries[i]); });
  sort_by_score(entries);
  const size_t batch = workers_.size() > 1 ? 4 * kBatch * workers_.size() : kBatch;
  for (size_t begin = 0; begin < entries.size(); begin += batch) {
    const size_t end = std::min(begin + batch, entries.size());
    for_each(begin, end, [&](Worker& worker, size_t i) { resolve(worker, entries[i]); });
    for (size_t i = begin; i < end; ++i) put(entries[i]);
    if (found_.size() > guessed_from_ + guessed_from_ / 4) raise_threshold();
  }
}

void Search::raise_threshold() {
  guessed_from_ = found_.size();
  const std::vector<Proposal> best = best_found();
  if (static_cast<int64_t>(best.size()) < params_.max_boxes) return;
  threshold_ = std::max(threshold_, std::nextafter(best.back().score, 0.0f));
  for (Worker& worker : workers_) worker.excluded[0] = worker.excluded[1] = Rate(1);
}

// Of what is not covered, scores are made exact as their turn comes: the next best by bound, if exact, is the next
// best.
std::vector<Proposal> Search::best_found() {
  const auto later = [&](const Entry& a, const Entry& b) {
    const bool exact_a = windows_[a.index].score.exact(), exact_b = windows_[b.index].score.exact();
    return a.bound == b.bound && exact_a != exact_b ? exact_a : b < a;
  };
  std::vector<Entry> left;
  for (const Entry& entry : found_)
    if (const float bound = windows_[entry.index].score.high; bound > threshold_)
      left.push_back({bound, entry.index, true});
  std::make_heap(left.begin(), left.end(), later);
  std::vector<Proposal> best;
  Suppression suppression(params_);
  while (!left.empty() && static_cast<int64_t>(best.size()) < params_.max_boxes) {
    std::pop_heap(left.begin(), left.end(), later);
    const int32_t index = left.back().index;
    left.pop_back();
    Window& window = windows_[index];
    if (suppression.covers(window.box)) continue;
    if (window.score.exact()) {
      suppression.add(window.box);
      best.push_back({window.box, window.score.high});
    } else {
      make_exact(workers_[0].scorer, window.box, window.score);
      left.push_back({window.score.high, index, true});
      std::push_heap(left.begin(), left.end(), later);
    }
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
