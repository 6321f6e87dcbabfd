// MIL aggregation on the CPU.
#include "mil_aggregate.h"

#include <cmath>
#include <limits>

#include "dispatch.h"

namespace avfast {
namespace {

// Rows [begin, end) of the flattened instances that make up bag `b`.
struct Bags {
  int64_t count, classes, dense_length;
  const int64_t* offsets;

  int64_t begin(int64_t b) const { return offsets ? offsets[b] : b * dense_length; }
  int64_t end(int64_t b) const { return offsets ? offsets[b + 1] : (b + 1) * dense_length; }
};

Bags read_bags(const TensorView& x, const TensorView& offsets) {
  check_contiguous(x);
  if (offsets.numel() == 0) {
    check_ndim(x, 3, "[B, P, C]");
    return {x.shape[0], x.shape[2], x.shape[1], nullptr};
  }
  check_ndim(x, 2, "[N, C]");
  check_ndim(offsets, 1, "[B + 1]");
  check_dtype(offsets, {Dtype::kInt64});
  check_contiguous(offsets);
  check_same_device(offsets, x);
  const int64_t* o = offsets.ptr<int64_t>();
  const int64_t count = offsets.shape[0] - 1;
  bool valid = o[0] == 0 && o[count] == x.shape[0];
  for (int64_t b = 0; b < count; ++b) valid = valid && o[b] <= o[b + 1];
  if (!valid)
    throw ValueError("offsets: expected bounds that start at 0, never decrease and end at " +
                     std::to_string(x.shape[0]) + ", the number of instances");
  return {count, x.shape[1], 0, o};
}

void check_statistic(const TensorView& x, const Bags& bags, const TensorView& as, bool accumulated) {
  check_shape(x, {bags.count, bags.classes}, "[B, C]");
  if (accumulated)
    check_dtype(x, {as.dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32});
  else
    check_same_dtype(x, as);
  check_contiguous(x);
  check_same_device(x, as);
}

void check_instances(const TensorView& x, const TensorView& as) {
  check_ndim(x, as.ndim, as.ndim == 3 ? "[B, P, C]" : "[N, C]");
  for (int d = 0; d < as.ndim; ++d)
    if (x.shape[d] != as.shape[d])
      throw ValueError(std::string(x.name) + ": expected shape " + as.shape_string() + " as " + as.name + ", got " +
                       x.shape_string());
  check_same_dtype(x, as);
  check_contiguous(x);
  check_same_device(x, as);
}

// Peak and total of one (bag, class) column, and the weighted sum of `scores` where given.
template <typename T>
struct Column {
  T peak = std::numeric_limits<T>::lowest(), total = 0, sum = 0;

  void add(T x, T score) {
    const T d = x - peak;
    const T e = std::exp(-std::abs(d));
    const bool rises = d > 0;
    total = rises ? total * e + 1 : total + e;
    sum = rises ? sum * e + score : sum + e * score;
    peak = rises ? x : peak;
  }
  // +inf has no softmax: NaN, as in torch.
  void finish() { total += peak - peak; }
};

}  // namespace

void mil_aggregate_forward_cpu(const TensorView& output, const TensorView& peak, const TensorView& total,
                               const TensorView& scores, const TensorView& logits, const TensorView& offsets) {
  const Bags bags = read_bags(scores, offsets);
  check_instances(logits, scores);
  check_statistic(output, bags, scores, false);
  check_statistic(peak, bags, scores, true);
  check_statistic(total, bags, scores, true);
  dispatch_float(scores, [&](auto tag) {
    using T = typename decltype(tag)::type;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < bags.count; ++b)
      for (int64_t c = 0; c < bags.classes; ++c) {
        Column<T> column;
        for (int64_t p = bags.begin(b); p < bags.end(b); ++p)
          column.add(logits.ptr<T>()[p * bags.classes + c], scores.ptr<T>()[p * bags.classes + c]);
        column.finish();
        const int64_t at = b * bags.classes + c;
        output.ptr<T>()[at] = column.total == 0 ? 0 : column.sum / column.total;
        peak.ptr<T>()[at] = column.peak;
        total.ptr<T>()[at] = column.total;
      }
  });
}

void mil_aggregate_backward_cpu(const TensorView& grad_scores, const TensorView& grad_logits,
                                const TensorView& grad_output, const TensorView& scores, const TensorView& logits,
                                const TensorView& output, const TensorView& peak, const TensorView& total,
                                const TensorView& offsets) {
  const Bags bags = read_bags(scores, offsets);
  check_instances(logits, scores);
  check_instances(grad_scores, scores);
  check_instances(grad_logits, scores);
  check_statistic(grad_output, bags, scores, false);
  check_statistic(output, bags, scores, false);
  check_statistic(peak, bags, scores, true);
  check_statistic(total, bags, scores, true);
  dispatch_float(scores, [&](auto tag) {
    using T = typename decltype(tag)::type;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < bags.count; ++b)
      for (int64_t c = 0; c < bags.classes; ++c) {
        const int64_t bag = b * bags.classes + c;
        const T whole = total.ptr<T>()[bag];
        const T g = whole == 0 ? 0 : grad_output.ptr<T>()[bag] / whole;
        for (int64_t p = bags.begin(b); p < bags.end(b); ++p) {
          const int64_t at = p * bags.classes + c;
          const T grad = g * std::exp(logits.ptr<T>()[at] - peak.ptr<T>()[bag]);
          grad_scores.ptr<T>()[at] = grad;
          grad_logits.ptr<T>()[at] = grad * (scores.ptr<T>()[at] - output.ptr<T>()[bag]);
        }
      }
  });
}

void mil_logsumexp_forward_cpu(const TensorView& output, const TensorView& peak, const TensorView& total,
                               const TensorView& scores, const TensorView& offsets, double r) {
  const Bags bags = read_bags(scores, offsets);
  check_statistic(output, bags, scores, false);
  check_statistic(peak, bags, scores, true);
  check_statistic(total, bags, scores, true);
  dispatch_float(scores, [&](auto tag) {
    using T = typename decltype(tag)::type;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < bags.count; ++b)
      for (int64_t c = 0; c < bags.classes; ++c) {
        Column<T> column;
        for (int64_t p = bags.begin(b); p < bags.end(b); ++p)
          column.add(static_cast<T>(r) * scores.ptr<T>()[p * bags.classes + c], 0);
        column.finish();
        const int64_t at = b * bags.classes + c, length = bags.end(b) - bags.begin(b);
        output.ptr<T>()[at] =
            length == 0 ? 0 : (column.peak + std::log(column.total / static_cast<T>(length))) / static_cast<T>(r);
        peak.ptr<T>()[at] = column.peak;
        total.ptr<T>()[at] = column.total;
      }
  });
}

void mil_logsumexp_backward_cpu(const TensorView& grad_scores, const TensorView& grad_output, const TensorView& scores,
                                const TensorView& peak, const TensorView& total, const TensorView& offsets, double r) {
  const Bags bags = read_bags(scores, offsets);
  check_instances(grad_scores, scores);
  check_statistic(grad_output, bags, scores, false);
  check_statistic(peak, bags, scores, true);
  check_statistic(total, bags, scores, true);
  dispatch_float(scores, [&](auto tag) {
    using T = typename decltype(tag)::type;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < bags.count; ++b)
      for (int64_t c = 0; c < bags.classes; ++c) {
        const int64_t bag = b * bags.classes + c;
        const T whole = total.ptr<T>()[bag];
        const T g = whole == 0 ? 0 : grad_output.ptr<T>()[bag] / whole;
        for (int64_t p = bags.begin(b); p < bags.end(b); ++p) {
          const int64_t at = p * bags.classes + c;
          grad_scores.ptr<T>()[at] = g * std::exp(static_cast<T>(r) * scores.ptr<T>()[at] - peak.ptr<T>()[bag]);
        }
      }
  });
}

}  // namespace avfast
