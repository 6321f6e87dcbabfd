// Online softmax over the instances of a bag, with SIMD over classes.
//
// One exponential per element: with d = x - peak, exp(-|d|) is the factor of the old sums where x is the new peak, and
// the weight of x otherwise. Where few classes would leave lanes idle, `fold` rows are read as one row of fold *
// classes columns, whose sums are merged class by class at the end.
#include "cpu/half.h"
#include "cpu/simd/vec.h"

namespace avfast::AVFAST_ISA {
namespace {

template <typename A>
constexpr A kLowest = -(std::is_same_v<A, float> ? static_cast<A>(__FLT_MAX__) : static_cast<A>(__DBL_MAX__));

// The longest folded row, with room for a vector past its end.
template <typename A>
constexpr int kFolded = 4 * kLanes<A> * kLanes<A>;

template <typename A>
struct Online {
  Vec<A> peak, total, sum;

  AVFAST_INLINE void add(Vec<A> x, Vec<A> score) {
    const Vec<A> d = x - peak;
    const Mask<A> rises = d > 0;
    const Vec<A> e = exp_nonpositive<A>(rises ? -d : d);
    const Vec<A> one = splat(A(1));
    const Vec<A> keep = rises ? e : one, weight = rises ? one : e;
    total = total * keep + weight;
    sum = sum * keep + weight * score;
    peak = rises ? x : peak;
  }
};

template <typename A>
AVFAST_INLINE Online<A> nothing() {
  return {splat(kLowest<A>), Vec<A>{}, Vec<A>{}};
}

template <typename A>
AVFAST_INLINE Online<A> load_online(const A* peak, const A* total, const A* sum) {
  return {load(peak), load(total), load(sum)};
}

template <typename A>
AVFAST_INLINE void store_online(const Online<A>& state, A* peak, A* total, A* sum) {
  store(peak, state.peak);
  store(total, state.total);
  store(sum, state.sum);
}

// N vectors of columns down all rows.
template <typename T, bool kScores, int N>
AVFAST_INLINE void down_rows(const T* logits, const T* scores, Acc<T> r, int64_t rows, int64_t stride, Acc<T>* peak,
                             Acc<T>* total, Acc<T>* sum) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>;
  Online<A> state[N];
  for (int v = 0; v < N; ++v) state[v] = nothing<A>();
  for (int64_t row = 0; row < rows; ++row, logits += stride, scores += kScores ? stride : 0)
    for (int v = 0; v < N; ++v) state[v].add(load(logits + v * L) * r, kScores ? load(scores + v * L) : Vec<A>{});
  for (int v = 0; v < N; ++v) store_online(state[v], peak + v * L, total + v * L, sum + v * L);
}

// All columns of rows at least a vector wide; the last vector overlaps its neighbour.
template <typename T, bool kScores>
void all_columns(const T* logits, const T* scores, Acc<T> r, int64_t rows, int64_t columns, Acc<T>* peak, Acc<T>* total,
                 Acc<T>* sum) {
  constexpr int L = kLanes<Acc<T>>;
  int64_t c = 0;
  for (; c + 2 * L <= columns; c += 2 * L)
    down_rows<T, kScores, 2>(logits + c, scores + (kScores ? c : 0), r, rows, columns, peak + c, total + c, sum + c);
  for (; c < columns; c += L) {
    const int64_t at = c + L <= columns ? c : columns - L;
    down_rows<T, kScores, 1>(logits + at, scores + (kScores ? at : 0), r, rows, columns, peak + at, total + at,
                             sum + at);
  }
}

// peaks, totals, sums are [parts, classes] and may be read a vector past their end.
template <typename A>
void merge(int64_t parts, int64_t classes, const A* peaks, const A* totals, const A* sums, A* peak, A* total, A* sum) {
  constexpr int L = kLanes<A>;
  for (int64_t c = 0; c < classes; c += L) {
    Vec<A> top = splat(kLowest<A>);
    for (int64_t part = 0; part < parts; ++part) {
      const Vec<A> x = load(peaks + part * classes + c);
      top = x > top ? x : top;
    }
    Online<A> state{top, Vec<A>{}, Vec<A>{}};
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t at = part * classes + c;
      // Infinite peaks are their own top; their difference would be NaN before the caller can see the infinity.
      const Vec<A> d = load(peaks + at) - top;
      const Vec<A> weight = exp_nonpositive<A>(load(peaks + at) == top ? Vec<A>{} : d);
      state.total += load(totals + at) * weight;
      state.sum += load(sums + at) * weight;
    }
    const int64_t left = classes - c;
    if (left >= L) {
      store_online(state, peak + c, total + c, sum + c);
    } else {
      store_part(peak + c, state.peak, left);
      store_part(total + c, state.total, left);
      store_part(sum + c, state.sum, left);
    }
  }
}

int64_t greatest_divisor(int64_t a, int64_t b) { return b == 0 ? a : greatest_divisor(b, a % b); }

// Rows to read as one: 1 where classes fill their vectors or rows are few, and enough to fill one vector at least.
template <typename A>
int64_t fold(int64_t rows, int64_t classes) {
  constexpr int64_t L = kLanes<A>;
  const int64_t full = L / greatest_divisor(classes, L);
  const int64_t vectors = (classes + L - 1) / L;
  if (classes >= L && (4 * classes > 3 * vectors * L || rows < 8 * full)) return 1;
  return classes >= L ? full : full * ((2 * L + full * classes - 1) / (full * classes));
}

template <typename T, bool kScores>
void forward_as(const T* logits, const T* scores, Acc<T> r, int64_t rows, int64_t classes, Acc<T>* peak, Acc<T>* total,
                Acc<T>* sum) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>;
  const int64_t folded = fold<A>(rows, classes), columns = folded * classes;
  if (folded == 1) return all_columns<T, kScores>(logits, scores, r, rows, columns, peak, total, sum);

  // Folded rows are whole vectors wide, then a vector for merge to read past the end.
  A peaks[kFolded<A> + L], totals[kFolded<A> + L], sums[kFolded<A> + L];
  for (int64_t c = columns; c < columns + L; ++c) peaks[c] = totals[c] = sums[c] = 0;
  const int64_t whole = rows / folded;
  all_columns<T, kScores>(logits, scores, r, whole, columns, peaks, totals, sums);
  const int64_t done = whole * columns, rest = rows * classes - done;
  for (int64_t c = 0; c < rest; c += L) {
    const int64_t left = rest - c;
    const T* x = logits + done + c;
    const T* s = scores + (kScores ? done + c : 0);
    Online<A> state = load_online(peaks + c, totals + c, sums + c);
    // Lanes past the end stay as they are.
    const Online<A> before = state;
    const Vec<A> value = (left >= L ? load(x) : load_part(x, left, A(0))) * r;
    const Vec<A> score = !kScores ? Vec<A>{} : left >= L ? load(s) : load_part(s, left, A(0));
    state.add(value, score);
    Mask<A> inside{};
    for (int i = 0; i < L; ++i) inside[i] = i < left ? -1 : 0;
    state = {inside ? state.peak : before.peak, inside ? state.total : before.total, inside ? state.sum : before.sum};
    store_online(state, peaks + c, totals + c, sums + c);
  }
  merge(folded, classes, peaks, totals, sums, peak, total, sum);
}

template <typename T>
void forward(const T* logits, const T* scores, Acc<T> r, int64_t rows, int64_t classes, Acc<T>* peak, Acc<T>* total,
             Acc<T>* sum) {
  if (scores != nullptr)
    forward_as<T, true>(logits, scores, r, rows, classes, peak, total, sum);
  else
    forward_as<T, false>(logits, scores, r, rows, classes, peak, total, sum);
}

// --- gradients ---------------------------------------------------------------------------------------------------

// What a class's gradients need, [columns] each.
template <typename A>
struct Statistics {
  const A *scale, *peak, *output;
};

template <typename T, bool kLogits>
AVFAST_INLINE void gradients(const T* logits, const T* scores, Acc<T> r, const Statistics<Acc<T>>& of, int64_t column,
                             int64_t at, int64_t count, T* grad_scores, T* grad_logits) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>;
  const auto read = [count](const auto* from) { return count >= L ? load(from) : load_part(from, count, A(0)); };
  const auto write = [count](T* to, Vec<A> x) { return count >= L ? store(to, x) : store_part(to, x, count); };
  const Vec<A> weight = exp_nonpositive<A>(read(logits + at) * r - read(of.peak + column)) * read(of.scale + column);
  write(grad_scores + at, weight);
  if constexpr (kLogits) write(grad_logits + at, weight * (read(scores + at) - read(of.output + column)));
}

template <typename T, bool kLogits>
void backward_rows(const T* logits, const T* scores, Acc<T> r, int64_t elements, int64_t columns,
                   const Statistics<Acc<T>>& of, T* grad_scores, T* grad_logits) {
  constexpr int L = kLanes<Acc<T>>;
  for (int64_t row = 0; row < elements; row += columns) {
    const int64_t width = elements - row < columns ? elements - row : columns;
    for (int64_t c = 0; c < width; c += L)
      gradients<T, kLogits>(logits, scores, r, of, c, row + c, width - c, grad_scores, grad_logits);
  }
}

template <typename T, bool kLogits>
void backward_as(const T* logits, const T* scores, Acc<T> r, int64_t rows, int64_t classes,
                 const Statistics<Acc<T>>& of, T* grad_scores, T* grad_logits) {
  using A = Acc<T>;
  const int64_t folded = fold<A>(rows, classes), columns = folded * classes, elements = rows * classes;
  if (folded == 1) return backward_rows<T, kLogits>(logits, scores, r, elements, columns, of, grad_scores, grad_logits);
  A scale[kFolded<A>], peak[kFolded<A>], output[kFolded<A>];
  for (int64_t c = 0; c < columns; ++c) {
    scale[c] = of.scale[c % classes];
    peak[c] = of.peak[c % classes];
    output[c] = kLogits ? of.output[c % classes] : A(0);
  }
  backward_rows<T, kLogits>(logits, scores, r, elements, columns, {scale, peak, output}, grad_scores, grad_logits);
}

template <typename T>
void backward(const T* logits, const T* scores, Acc<T> r, int64_t rows, int64_t classes, const Acc<T>* scale,
              const Acc<T>* peak, const Acc<T>* output, T* grad_scores, T* grad_logits) {
  const Statistics<Acc<T>> of{scale, peak, output};
  if (grad_logits != nullptr)
    backward_as<T, true>(logits, scores, r, rows, classes, of, grad_scores, grad_logits);
  else
    backward_as<T, false>(logits, scores, r, rows, classes, of, grad_scores, grad_logits);
}

}  // namespace

template <typename T, typename A>
const MilKernels<T, A>* mil_table() {
  static const MilKernels<T, A> table{forward<T>, merge<A>, backward<T>};
  return &table;
}
template const MilKernels<double, double>* mil_table<double, double>();
template const MilKernels<float, float>* mil_table<float, float>();
template const MilKernels<Half, float>* mil_table<Half, float>();
template const MilKernels<BFloat16, float>* mil_table<BFloat16, float>();

}  // namespace avfast::AVFAST_ISA
