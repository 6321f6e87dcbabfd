// MIL aggregation on the CPU: checks, and the parts of bags that threads share.
#include "mil_aggregate.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/half.h"
#include "cpu/memory.h"
#include "cpu/simd/kernels.h"
#include "dispatch.h"
#include "mil_aggregate_checks.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace avfast {
namespace {

// Rows [begin, end) of the flattened instances that make up bag `b`.
struct Bags : BagSizes {
  int64_t dense_length;
  const int64_t* offsets;

  int64_t begin(int64_t b) const { return offsets ? offsets[b] : b * dense_length; }
  int64_t end(int64_t b) const { return offsets ? offsets[b + 1] : (b + 1) * dense_length; }
};

Bags read_bags(const TensorView& x, const TensorView& offsets) {
  const BagSizes sizes = check_bags(x, offsets);
  check_contiguous(x);
  if (offsets.numel() == 0) return {sizes, x.shape[1], nullptr};
  const int64_t* o = offsets.ptr<int64_t>();
  bool valid = o[0] == 0 && o[sizes.count] == x.shape[0];
  for (int64_t b = 0; b < sizes.count; ++b) valid = valid && o[b] <= o[b + 1];
  if (!valid)
    throw ValueError("offsets: expected bounds that start at 0, never decrease and end at " +
                     std::to_string(x.shape[0]) + ", the number of instances");
  return {sizes, 0, o};
}

// --- parts of bags -----------------------------------------------------------------------------------------------

constexpr int64_t kPartValues = 16 * 1024;    // a longer bag is shared among threads
constexpr int64_t kSerialValues = 64 * 1024;  // fewer take some 30 us: not worth a second thread

struct Part {
  int64_t bag, begin, end;
};

// Every bag in equal parts, whose bounds do not depend on the number of threads: results do not either.
std::vector<Part> make_parts(const Bags& bags) {
  std::vector<Part> parts;
  parts.reserve(bags.count);
  for (int64_t b = 0; b < bags.count; ++b) {
    const int64_t begin = bags.begin(b), length = bags.end(b) - begin;
    const int64_t count = std::max<int64_t>(1, length * bags.classes / kPartValues);
    for (int64_t i = 0; i < count; ++i)
      parts.push_back({b, begin + length * i / count, begin + length * (i + 1) / count});
  }
  return parts;
}

template <typename F>
void for_each_part(const std::vector<Part>& parts, int64_t values, F&& f) {
  const int64_t count = static_cast<int64_t>(parts.size());
#pragma omp parallel for schedule(dynamic) if (count > 1 && values > kSerialValues)
  for (int64_t i = 0; i < count; ++i) f(i, parts[i]);
}

template <typename T>
using Statistic = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
Statistic<T> widen(T x) {
  if constexpr (sizeof(T) == 2)
    return to_float(x);
  else
    return x;
}

template <typename T>
T narrow(Statistic<T> x) {
  if constexpr (std::is_same_v<T, Half>)
    return to_half(x);
  else if constexpr (std::is_same_v<T, BFloat16>)
    return to_bfloat16(x);
  else
    return x;
}

// Calls finish(bag, class, peak, total, sum) -> output for every class of every bag, and stores all but the sum.
template <typename T, typename Finish>
void forward(const TensorView& output, const TensorView& peak, const TensorView& total, const TensorView& logits,
             const TensorView* scores, const Bags& bags, double r, Finish&& finish) {
  using A = Statistic<T>;
  const MilKernels<T, A>& kernels = mil_kernels<T, A>();
  const std::vector<Part> parts = make_parts(bags);
  const int64_t classes = bags.classes;
  constexpr int64_t kPast = 16;  // a vector past the end, which merge may read
  std::vector<A> state(3 * (parts.size() * classes + kPast));
  A* peaks = state.data();
  A* totals = peaks + parts.size() * classes + kPast;
  A* sums = totals + parts.size() * classes + kPast;

  const auto close = [&](int64_t bag, const A* p, const A* t, const A* s) {
    for (int64_t c = 0; c < classes; ++c) {
      const int64_t at = bag * classes + c;
      const A whole = t[c] + (p[c] - p[c]);  // +inf has no softmax: NaN, as in torch
      peak.ptr<A>()[at] = p[c];
      total.ptr<A>()[at] = whole;
      output.ptr<T>()[at] = narrow<T>(finish(bag, p[c], whole, s[c]));
    }
  };
  const bool whole_bags = static_cast<int64_t>(parts.size()) == bags.count;
  for_each_part(parts, logits.numel(), [&](int64_t i, const Part& part) {
    const T* x = logits.ptr<T>() + part.begin * classes;
    const T* s = scores == nullptr ? nullptr : scores->ptr<T>() + part.begin * classes;
    const int64_t at = i * classes;
    kernels.forward(x, s, static_cast<A>(r), part.end - part.begin, classes, peaks + at, totals + at, sums + at);
    if (whole_bags) close(part.bag, peaks + at, totals + at, sums + at);
  });
  if (whole_bags) return;
  std::vector<A> merged(3 * classes);
  for (size_t i = 0; i < parts.size();) {
    size_t end = i + 1;
    while (end < parts.size() && parts[end].bag == parts[i].bag) ++end;
    const int64_t at = static_cast<int64_t>(i) * classes;
    kernels.merge(static_cast<int64_t>(end - i), classes, peaks + at, totals + at, sums + at, merged.data(),
                  merged.data() + classes, merged.data() + 2 * classes);
    close(parts[i].bag, merged.data(), merged.data() + classes, merged.data() + 2 * classes);
    i = end;
  }
}

template <typename T>
void backward(const TensorView& grad_scores, const TensorView* grad_logits, const TensorView& grad_output,
              const TensorView& logits, const TensorView* scores, const TensorView* output, const TensorView& peak,
              const TensorView& total, const Bags& bags, double r) {
  using A = Statistic<T>;
  const MilKernels<T, A>& kernels = mil_kernels<T, A>();
  const int64_t classes = bags.classes, values = bags.count * classes;
  std::vector<A> scale(values), outputs(output == nullptr ? 0 : values);
  for (int64_t i = 0; i < values; ++i) {
    const A whole = total.ptr<A>()[i];
    scale[i] = whole == 0 ? 0 : widen(grad_output.ptr<T>()[i]) / whole;
    if (output != nullptr) outputs[i] = widen(output->ptr<T>()[i]);
  }
  prefer_huge_pages(grad_scores.data, logits.numel() * sizeof(T));
  if (grad_logits != nullptr) prefer_huge_pages(grad_logits->data, logits.numel() * sizeof(T));
  for_each_part(make_parts(bags), logits.numel(), [&](int64_t, const Part& part) {
    const int64_t at = part.begin * classes, bag = part.bag * classes;
    kernels.backward(logits.ptr<T>() + at, scores == nullptr ? nullptr : scores->ptr<T>() + at, static_cast<A>(r),
                     part.end - part.begin, classes, scale.data() + bag, peak.ptr<A>() + bag, outputs.data() + bag,
                     grad_scores.ptr<T>() + at, grad_logits == nullptr ? nullptr : grad_logits->ptr<T>() + at);
  });
}

}  // namespace

void mil_aggregate_forward_cpu(const TensorView& output, const TensorView& peak, const TensorView& total,
                               const TensorView& scores, const TensorView& logits, const TensorView& offsets) {
  const Bags bags = read_bags(scores, offsets);
  check_contiguous_instances(logits, scores);
  check_contiguous_bag_values(output, bags, scores);
  check_statistic(peak, bags, scores);
  check_statistic(total, bags, scores);
  if (output.numel() == 0) return;
  dispatch_float_or_half<Half, BFloat16>(scores, [&](auto tag) {
    using T = typename decltype(tag)::type;
    forward<T>(output, peak, total, logits, &scores, bags, 1,
               [](int64_t, auto, auto whole, auto sum) { return whole == 0 ? 0 : sum / whole; });
  });
}

void mil_aggregate_backward_cpu(const TensorView& grad_scores, const TensorView& grad_logits,
                                const TensorView& grad_output, const TensorView& scores, const TensorView& logits,
                                const TensorView& output, const TensorView& peak, const TensorView& total,
                                const TensorView& offsets) {
  const Bags bags = read_bags(scores, offsets);
  check_contiguous_instances(logits, scores);
  check_contiguous_instances(grad_scores, scores);
  check_contiguous_instances(grad_logits, scores);
  check_contiguous_bag_values(grad_output, bags, scores);
  check_contiguous_bag_values(output, bags, scores);
  check_statistic(peak, bags, scores);
  check_statistic(total, bags, scores);
  if (scores.numel() == 0) return;
  dispatch_float_or_half<Half, BFloat16>(scores, [&](auto tag) {
    backward<typename decltype(tag)::type>(grad_scores, &grad_logits, grad_output, logits, &scores, &output, peak,
                                           total, bags, 1);
  });
}

void mil_logsumexp_forward_cpu(const TensorView& output, const TensorView& peak, const TensorView& total,
                               const TensorView& scores, const TensorView& offsets, double r) {
  const Bags bags = read_bags(scores, offsets);
  check_contiguous_bag_values(output, bags, scores);
  check_statistic(peak, bags, scores);
  check_statistic(total, bags, scores);
  if (output.numel() == 0) return;
  dispatch_float_or_half<Half, BFloat16>(scores, [&](auto tag) {
    using T = typename decltype(tag)::type;
    forward<T>(output, peak, total, scores, nullptr, bags, r, [&](int64_t bag, auto top, auto whole, auto) {
      using A = decltype(whole);
      const int64_t length = bags.end(bag) - bags.begin(bag);
      return length == 0 ? A(0) : (top + std::log(whole / static_cast<A>(length))) / static_cast<A>(r);
    });
  });
}

void mil_logsumexp_backward_cpu(const TensorView& grad_scores, const TensorView& grad_output, const TensorView& scores,
                                const TensorView& peak, const TensorView& total, const TensorView& offsets, double r) {
  const Bags bags = read_bags(scores, offsets);
  check_contiguous_instances(grad_scores, scores);
  check_contiguous_bag_values(grad_output, bags, scores);
  check_statistic(peak, bags, scores);
  check_statistic(total, bags, scores);
  if (scores.numel() == 0) return;
  dispatch_float_or_half<Half, BFloat16>(scores, [&](auto tag) {
    backward<typename decltype(tag)::type>(grad_scores, nullptr, grad_output, scores, nullptr, nullptr, peak, total,
                                           bags, r);
  });
}

}  // namespace avfast
