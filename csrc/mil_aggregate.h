// MIL aggregation over the instances of a bag, softmax-weighted sum and log-mean-exp: launchers of both devices.
#pragma once

#include "tensor_view.h"

namespace avfast {

// Bags are dense, [B, P, C], or ragged, [N, C] with int64 offsets [B + 1] (an empty view `offsets`, numel 0,
// says dense). Statistics are in the accumulation type: float64 for float64, else float32. `peak` is each bag's
// maximum (of logits, or of r * scores), `total` the sum of exp(x - peak); backward needs nothing else.
// An empty bag gives 0, and so does a bag whose logits are all -inf (its weights are 0).

// output = sum_p scores * softmax_p(logits)
void mil_aggregate_forward_cpu(const TensorView& output,  // [B, C]
                               const TensorView& peak,    // [B, C]
                               const TensorView& total,   // [B, C]
                               const TensorView& scores,  // [B, P, C] or [N, C]
                               const TensorView& logits,  // as scores
                               const TensorView& offsets);
void mil_aggregate_backward_cpu(const TensorView& grad_scores,  // as scores
                                const TensorView& grad_logits,  // as scores
                                const TensorView& grad_output,  // [B, C]
                                const TensorView& scores, const TensorView& logits, const TensorView& output,
                                const TensorView& peak, const TensorView& total, const TensorView& offsets);

// output = (1 / r) log mean_p exp(r * scores)
void mil_logsumexp_forward_cpu(const TensorView& output, const TensorView& peak, const TensorView& total,
                               const TensorView& scores, const TensorView& offsets, double r);
void mil_logsumexp_backward_cpu(const TensorView& grad_scores, const TensorView& grad_output, const TensorView& scores,
                                const TensorView& peak, const TensorView& total, const TensorView& offsets, double r);

// The same on CUDA, queued on `stream`; never synchronises with the host.
void mil_aggregate_forward_cuda(const TensorView& output, const TensorView& peak, const TensorView& total,
                                const TensorView& scores, const TensorView& logits, const TensorView& offsets,
                                void* stream);
void mil_aggregate_backward_cuda(const TensorView& grad_scores, const TensorView& grad_logits,
                                 const TensorView& grad_output, const TensorView& scores, const TensorView& logits,
                                 const TensorView& output, const TensorView& peak, const TensorView& total,
                                 const TensorView& offsets, void* stream);
void mil_logsumexp_forward_cuda(const TensorView& output, const TensorView& peak, const TensorView& total,
                                const TensorView& scores, const TensorView& offsets, double r, void* stream);
void mil_logsumexp_backward_cuda(const TensorView& grad_scores, const TensorView& grad_output, const TensorView& scores,
                                 const TensorView& peak, const TensorView& total, const TensorView& offsets, double r,
                                 void* stream);

}  // namespace avfast
