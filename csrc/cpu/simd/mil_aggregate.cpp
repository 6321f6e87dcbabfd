// Softmax statistics of bags and their gradients, with SIMD over classes.
//
// A bag, or the part of one that a thread takes, stays in cache between finding its peaks and summing its
// exponentials, so memory is read once. Where few classes would leave lanes idle, `fold` rows are read as one row of
// fold * classes columns, whose copies of a class share one peak and whose sums are added at the end.
#include "cpu/half.h"
#include "cpu/simd/vec.h"

namespace avfast::AVFAST_ISA {
namespace {

template <typename A>
constexpr A kLowest = -(std::is_same_v<A, float> ? static_cast<A>(__FLT_MAX__) : static_cast<A>(__DBL_MAX__));

// Of a folded row, with room for a vector past its end.
template <typename A>
constexpr int kFolded = 4 * kLanes<A> * kLanes<A> + kLanes<A>;

// Rows taken together: their exponentials overlap, and the sums of their columns are read and written once.
constexpr int kRows = 4;

template <typename A>
AVFAST_INLINE Vec<A> larger(Vec<A> x, Vec<A> than) {
  return x > than ? x : than;
}

template <typename A>
AVFAST_INLINE void fill(A* to, int64_t count, A value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

template <typename T>
AVFAST_INLINE Vec<Acc<T>> read(const T* from, int64_t count) {
  return count >= kLanes<Acc<T>> ? load(from) : load_part(from, count, Acc<T>(0));
}

template <typename T>
AVFAST_INLINE void write(T* to, Vec<Acc<T>> x, int64_t count) {
  count >= kLanes<Acc<T>> ? store(to, x) : store_part(to, x, count);
}

// --- folding -----------------------------------------------------------------------------------------------------

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

// Values by class, repeated for each of `copies` rows. Writes up to a vector past the end.
template <typename A>
AVFAST_INLINE void spread(const A* from, int64_t copies, int64_t classes, A* to) {
  constexpr int L = kLanes<A>;
  for (int64_t c = 0; c < classes; c += L) store(to + c, read(from + c, classes - c));
  for (int64_t copy = 1; copy < copies; ++copy)
    for (int64_t c = 0; c < classes; c += L) store(to + copy * classes + c, load(to + c));
}

// The opposite: join(x, y) over all copies of a class. Reads up to a vector past the end.
template <typename A, typename F>
AVFAST_INLINE void gather(const A* from, int64_t copies, int64_t classes, A* to, F&& join) {
  for (int64_t c = 0; c < classes; c += kLanes<A>) {
    Vec<A> x = load(from + c);
    for (int64_t copy = 1; copy < copies; ++copy) x = join(x, load(from + copy * classes + c));
    write(to + c, x, classes - c);
  }
}

// --- statistics --------------------------------------------------------------------------------------------------

// Calls f(c, count, counted) for vectors that cover [0, columns): `count` values may be read at c, and the lanes
// `counted` are new. The last vector overlaps its neighbour, or is a part where there is none.
template <typename A, typename F>
AVFAST_INLINE void for_each_vector(int64_t columns, F&& f) {
  constexpr int64_t L = kLanes<A>;
  int64_t c = 0;
  for (; c + L <= columns; c += L) f(c, L, splat_int<A>(-1));
  if (c == columns) return;
  Mask<A> lane{};
  for (int i = 0; i < L; ++i) lane[i] = i;
  const auto left = static_cast<MaskInt<A>>(columns - c);
  if (columns >= L)
    f(columns - L, L, lane >= static_cast<MaskInt<A>>(L) - left);
  else
    f(0, columns, lane < left);
}

// What the softmax is taken of: the logits themselves where there are scores (r is 1 then), else r times them.
template <bool kScores, typename T>
AVFAST_INLINE Vec<Acc<T>> read_exponent(const T* logits, int64_t count, Acc<T> r) {
  return kScores ? read(logits, count) : read(logits, count) * r;
}

template <typename T, bool kScores, int N>
void raise_peaks(const T* logits, Acc<T> r, int64_t columns, Acc<T>* peak) {
  using A = Acc<T>;
  for_each_vector<A>(columns, [=](int64_t c, int64_t count, Mask<A> counted) {
    Vec<A> top = load(peak + c);
    for (int n = 0; n < N; ++n) {
      const Vec<A> x = read_exponent<kScores>(logits + n * columns + c, count, r);
      top = larger<A>(counted ? x : top, top);
    }
    store(peak + c, top);
  });
}

template <typename T, bool kScores, int N>
void add_exponentials(const T* logits, const T* scores, Acc<T> r, int64_t columns, const Acc<T>* peak, Acc<T>* total,
                      Acc<T>* sum) {
  using A = Acc<T>;
  for_each_vector<A>(columns, [=](int64_t c, int64_t count, Mask<A> counted) {
    const Vec<A> top = load(peak + c);
    Vec<A> totals = load(total + c), sums = load(sum + c);
    for (int n = 0; n < N; ++n) {
      const int64_t at = n * columns + c;
      const Vec<A> e = exp_nonpositive<A>(read_exponent<kScores>(logits + at, count, r) - top);
      totals += counted ? e : Vec<A>{};
      if constexpr (kScores) sums += counted ? e * read(scores + at, count) : Vec<A>{};
    }
    store(total + c, totals);
    store(sum + c, sums);
  });
}

// Peaks, totals and sums of whole rows, [columns] each. Fewer columns than a vector: they may be read and written up
// to one.
template <typename T, bool kScores>
struct Rows {
  using A = Acc<T>;
  const T *logits, *scores;
  A r;
  int64_t rows, columns;

  void raise(A* peak) const {
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) raise_peaks<T, kScores, kRows>(logits + row * columns, r, columns, peak);
    for (; row < rows; ++row) raise_peaks<T, kScores, 1>(logits + row * columns, r, columns, peak);
  }

  void add(const A* peak, A* total, A* sum) const {
    const int64_t step = kScores ? columns : 0;
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows)
      add_exponentials<T, kScores, kRows>(logits + row * columns, scores + row * step, r, columns, peak, total, sum);
    for (; row < rows; ++row)
      add_exponentials<T, kScores, 1>(logits + row * columns, scores + row * step, r, columns, peak, total, sum);
  }
};

template <typename T, bool kScores>
void forward_as(const T* logits, const T* scores, Acc<T> r, int64_t rows, int64_t classes, Acc<T>* peak, Acc<T>* total,
                Acc<T>* sum) {
  using A = Acc<T>;
  const int64_t folded = fold<A>(rows, classes), columns = folded * classes;
  if (folded == 1) {
    fill(peak, classes, kLowest<A>);
    fill(total, classes, A(0));
    fill(sum, classes, A(0));
    const Rows<T, kScores> all{logits, scores, r, rows, classes};
    all.raise(peak);
    return all.add(peak, total, sum);
  }

  A peaks[kFolded<A>], totals[kFolded<A>], sums[kFolded<A>];
  fill(peaks, columns + kLanes<A>, kLowest<A>);
  fill(totals, columns + kLanes<A>, A(0));
  fill(sums, columns + kLanes<A>, A(0));
  const int64_t done = rows / folded * columns, rest = rows * classes - done;
  const Rows<T, kScores> whole{logits, scores, r, rows / folded, columns};
  const Rows<T, kScores> last{logits + done, scores + (kScores ? done : 0), r, rest > 0, rest};
  whole.raise(peaks);
  last.raise(peaks);
  gather(peaks, folded, classes, peak, [](Vec<A> x, Vec<A> y) { return larger<A>(x, y); });
  spread(peak, folded, classes, peaks);
  whole.add(peaks, totals, sums);
  last.add(peaks, totals, sums);
  const auto plus = [](Vec<A> x, Vec<A> y) { return x + y; };
  gather(totals, folded, classes, total, plus);
  gather(sums, folded, classes, sum, plus);
}

template <typename T>
void forward(const T* logits, const T* scores, Acc<T> r, int64_t rows, int64_t classes, Acc<T>* peak, Acc<T>* total,
             Acc<T>* sum) {
  if (scores != nullptr)
    forward_as<T, true>(logits, scores, r, rows, classes, peak, total, sum);
  else
    forward_as<T, false>(logits, scores, r, rows, classes, peak, total, sum);
}

// peaks, totals, sums are [parts, classes] and may be read a vector past their end.
template <typename A>
void merge(int64_t parts, int64_t classes, const A* peaks, const A* totals, const A* sums, A* peak, A* total, A* sum) {
  for (int64_t c = 0; c < classes; c += kLanes<A>) {
    Vec<A> top = splat(kLowest<A>), all{}, weighted{};
    for (int64_t part = 0; part < parts; ++part) top = larger<A>(load(peaks + part * classes + c), top);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t at = part * classes + c;
      // Infinite peaks are their own top; their difference would be NaN before the caller can see the infinity.
      const Vec<A> d = load(peaks + at) - top;
      const Vec<A> weight = exp_nonpositive<A>(load(peaks + at) == top ? Vec<A>{} : d);
      all += load(totals + at) * weight;
      weighted += load(sums + at) * weight;
    }
    write(peak + c, top, classes - c);
    write(total + c, all, classes - c);
    write(sum + c, weighted, classes - c);
  }
}

// --- gradients ---------------------------------------------------------------------------------------------------

// What a class's gradients need, [columns] each.
template <typename A>
struct Statistics {
  const A *scale, *peak, *output;
};

template <typename T, bool kScores>
AVFAST_INLINE void write_gradients(const T* logits, const T* scores, Acc<T> r, const Statistics<Acc<T>>& of,
                                   int64_t column, int64_t at, int64_t count, T* grad_scores, T* grad_logits) {
  using A = Acc<T>;
  // Every read before the first write, which might be to the same memory for all that the machine knows.
  const Vec<A> x = read_exponent<kScores>(logits + at, count, r) - read(of.peak + column, count);
  const Vec<A> scale = read(of.scale + column, count);
  Vec<A> above{};
  if constexpr (kScores) above = read(scores + at, count) - read(of.output + column, count);
  const Vec<A> weight = exp_nonpositive<A>(x) * scale;
  write(grad_scores + at, weight, count);
  if constexpr (kScores) write(grad_logits + at, weight * above, count);
}

template <typename T, bool kScores>
void backward_rows(const T* logits, const T* scores, Acc<T> r, int64_t elements, int64_t columns,
                   const Statistics<Acc<T>> of, T* grad_scores, T* grad_logits) {
  constexpr int64_t L = kLanes<Acc<T>>;
  for (int64_t row = 0; row < elements; row += columns) {
    const int64_t width = elements - row < columns ? elements - row : columns;
    int64_t c = 0;
    for (; c + L <= width; c += L)
      write_gradients<T, kScores>(logits, scores, r, of, c, row + c, L, grad_scores, grad_logits);
    if (c < width) write_gradients<T, kScores>(logits, scores, r, of, c, row + c, width - c, grad_scores, grad_logits);
  }
}

template <typename T, bool kScores>
void backward_as(const T* logits, const T* scores, Acc<T> r, int64_t rows, int64_t classes, const Statistics<Acc<T>> of,
                 T* grad_scores, T* grad_logits) {
  using A = Acc<T>;
  const int64_t folded = fold<A>(rows, classes), columns = folded * classes, elements = rows * classes;
  if (folded == 1) return backward_rows<T, kScores>(logits, scores, r, elements, columns, of, grad_scores, grad_logits);
  A scale[kFolded<A>], peak[kFolded<A>], output[kFolded<A>];
  spread(of.scale, folded, classes, scale);
  spread(of.peak, folded, classes, peak);
  if constexpr (kScores) spread(of.output, folded, classes, output);
  backward_rows<T, kScores>(logits, scores, r, elements, columns, {scale, peak, output}, grad_scores, grad_logits);
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
