// The Python module avfast._C: the only file that knows pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "cpu/simd/kernels.h"
#include "edge_boxes.h"
#include "mil_aggregate.h"
#include "roi_pool.h"
#include "tensor_arg.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace avfast {
namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

py::dict build_info() {
  py::dict info;
  info["version"] = AVFAST_VERSION;
#ifdef AVFAST_WITH_CUDA
  info["cuda"] = AVFAST_CUDA_VERSION;
  info["cuda_archs"] = split(AVFAST_CUDA_ARCHS);
#else
  info["cuda"] = py::none();
  info["cuda_archs"] = py::list();
#endif
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["cpu_isa"] = isa_name(active_isa());
  info["compiler"] = __VERSION__;
  return info;
}

// Runs `cpu()` or `cuda(stream)`, whichever device `view` is on, with the GIL released.
template <typename Cpu, typename Cuda>
void launch(const TensorView& view, py::handle tensor, Cpu&& cpu, Cuda&& cuda) {
  void* stream = current_stream(tensor, view.device);
  py::gil_scoped_release released;
  if (view.device.type == DeviceType::kCPU) return cpu();
#ifdef AVFAST_WITH_CUDA
  cuda(stream);
#else
  (void)stream;
  (void)cuda;
  throw TypeError(std::string(view.name) +
                  ": on a CUDA device, but this avfast was built without CUDA; install the CUDA toolkit (nvcc) and "
                  "build again: AVFAST_CUDA=ON pip install -e .");
#endif
}

#ifdef AVFAST_WITH_CUDA
#define AVFAST_ON_CUDA(call) [&](void* stream) { call; }
#else
#define AVFAST_ON_CUDA(call) nullptr
#endif

void roi_pool_forward(py::handle output, py::handle winner, py::handle input, py::handle boxes, double spatial_scale) {
  const TensorView output_view = tensor_view(output, "output"), winner_view = tensor_view(winner, "winner");
  const TensorView input_view = tensor_view(input, "input"), boxes_view = tensor_view(boxes, "boxes");
  launch(
      input_view, input, [&] { roi_pool_forward_cpu(output_view, winner_view, input_view, boxes_view, spatial_scale); },
      AVFAST_ON_CUDA(roi_pool_forward_cuda(output_view, winner_view, input_view, boxes_view, spatial_scale, stream)));
}

void roi_pool_backward(py::handle grad_input, py::handle grad_output, py::handle winner, py::handle boxes,
                       double spatial_scale) {
  const TensorView grad_input_view = tensor_view(grad_input, "grad_input");
  const TensorView grad_output_view = tensor_view(grad_output, "grad_output");
  const TensorView winner_view = tensor_view(winner, "winner"), boxes_view = tensor_view(boxes, "boxes");
  launch(
      grad_input_view, grad_input,
      [&] { roi_pool_backward_cpu(grad_input_view, grad_output_view, winner_view, boxes_view, spatial_scale); },
      AVFAST_ON_CUDA(
          roi_pool_backward_cuda(grad_input_view, grad_output_view, winner_view, boxes_view, spatial_scale, stream)));
}

// Dense bags come with offsets None, which the launchers see as a view without elements.
TensorView offsets_view(const py::object& offsets, const TensorView& scores) {
  if (!offsets.is_none()) return tensor_view(offsets, "offsets");
  TensorView none{};
  none.name = "offsets";
  none.dtype = Dtype::kInt64;
  none.device = scores.device;
  none.ndim = 1;
  return none;
}

void mil_aggregate_forward(py::handle output, py::handle peak, py::handle total, py::handle scores, py::handle logits,
                           const py::object& offsets) {
  const TensorView output_view = tensor_view(output, "output"), peak_view = tensor_view(peak, "peak");
  const TensorView total_view = tensor_view(total, "total"), scores_view = tensor_view(scores, "scores");
  const TensorView logits_view = tensor_view(logits, "logits"), bags = offsets_view(offsets, scores_view);
  launch(
      scores_view, scores,
      [&] { mil_aggregate_forward_cpu(output_view, peak_view, total_view, scores_view, logits_view, bags); },
      AVFAST_ON_CUDA(
          mil_aggregate_forward_cuda(output_view, peak_view, total_view, scores_view, logits_view, bags, stream)));
}

void mil_aggregate_backward(py::handle grad_scores, py::handle grad_logits, py::handle grad_output, py::handle scores,
                            py::handle logits, py::handle output, py::handle peak, py::handle total,
                            const py::object& offsets) {
  const TensorView grad_scores_view = tensor_view(grad_scores, "grad_scores");
  const TensorView grad_logits_view = tensor_view(grad_logits, "grad_logits");
  const TensorView grad_output_view = tensor_view(grad_output, "grad_output");
  const TensorView scores_view = tensor_view(scores, "scores"), logits_view = tensor_view(logits, "logits");
  const TensorView output_view = tensor_view(output, "output"), peak_view = tensor_view(peak, "peak");
  const TensorView total_view = tensor_view(total, "total"), bags = offsets_view(offsets, scores_view);
  launch(
      scores_view, scores,
      [&] {
        mil_aggregate_backward_cpu(grad_scores_view, grad_logits_view, grad_output_view, scores_view, logits_view,
                                   output_view, peak_view, total_view, bags);
      },
      AVFAST_ON_CUDA(mil_aggregate_backward_cuda(grad_scores_view, grad_logits_view, grad_output_view, scores_view,
                                                 logits_view, output_view, peak_view, total_view, bags, stream)));
}

void mil_logsumexp_forward(py::handle output, py::handle peak, py::handle total, py::handle scores,
                           const py::object& offsets, double r) {
  const TensorView output_view = tensor_view(output, "output"), peak_view = tensor_view(peak, "peak");
  const TensorView total_view = tensor_view(total, "total"), scores_view = tensor_view(scores, "scores");
  const TensorView bags = offsets_view(offsets, scores_view);
  launch(
      scores_view, scores, [&] { mil_logsumexp_forward_cpu(output_view, peak_view, total_view, scores_view, bags, r); },
      AVFAST_ON_CUDA(mil_logsumexp_forward_cuda(output_view, peak_view, total_view, scores_view, bags, r, stream)));
}

void mil_logsumexp_backward(py::handle grad_scores, py::handle grad_output, py::handle scores, py::handle peak,
                            py::handle total, const py::object& offsets, double r) {
  const TensorView grad_scores_view = tensor_view(grad_scores, "grad_scores");
  const TensorView grad_output_view = tensor_view(grad_output, "grad_output");
  const TensorView scores_view = tensor_view(scores, "scores"), peak_view = tensor_view(peak, "peak");
  const TensorView total_view = tensor_view(total, "total"), bags = offsets_view(offsets, scores_view);
  launch(
      scores_view, scores,
      [&] {
        mil_logsumexp_backward_cpu(grad_scores_view, grad_output_view, scores_view, peak_view, total_view, bags, r);
      },
      AVFAST_ON_CUDA(mil_logsumexp_backward_cuda(grad_scores_view, grad_output_view, scores_view, peak_view, total_view,
                                                 bags, r, stream)));
}

void edge_boxes(py::handle boxes, py::handle scores, py::handle counts, py::handle edges, py::handle orientation,
                int64_t max_boxes, float alpha, float beta, float eta, float min_score, float edge_min_mag,
                float edge_merge_thr, float cluster_min_mag, float max_aspect_ratio, float min_box_area, float gamma,
                float kappa) {
  const TensorView boxes_view = tensor_view(boxes, "boxes"), scores_view = tensor_view(scores, "scores");
  const TensorView counts_view = tensor_view(counts, "counts"), edges_view = tensor_view(edges, "edges");
  const TensorView orientation_view = tensor_view(orientation, "orientation");
  const EdgeBoxesParams params{max_boxes,        alpha,        beta,           eta,
                               min_score,        edge_min_mag, edge_merge_thr, cluster_min_mag,
                               max_aspect_ratio, min_box_area, gamma,          kappa};
  py::gil_scoped_release released;
  edge_boxes_cpu(boxes_view, scores_view, counts_view, edges_view, orientation_view, params);
}

}  // namespace
}  // namespace avfast

PYBIND11_MODULE(_C, m) {
  using py::literals::operator""_a;
  m.doc() = "Native kernels of avfast; call them through avfast.ops.";
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const avfast::TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    } catch (const avfast::ValueError& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    }
  });
  m.def("build_info", &avfast::build_info,
        "How this module was built: version, cuda, cuda_archs, openmp, cpu_isa, compiler.");

  // Outputs first and written in place; the shapes are those of roi_pool.h, mil_aggregate.h and edge_boxes.h.
  m.def("roi_pool_forward", &avfast::roi_pool_forward);
  m.def("roi_pool_backward", &avfast::roi_pool_backward);
  m.def("mil_aggregate_forward", &avfast::mil_aggregate_forward);
  m.def("mil_aggregate_backward", &avfast::mil_aggregate_backward);
  m.def("mil_logsumexp_forward", &avfast::mil_logsumexp_forward);
  m.def("mil_logsumexp_backward", &avfast::mil_logsumexp_backward);
  m.def("edge_boxes", &avfast::edge_boxes, "boxes"_a, "scores"_a, "counts"_a, "edges"_a, "orientation"_a, "max_boxes"_a,
        "alpha"_a, "beta"_a, "eta"_a, "min_score"_a, "edge_min_mag"_a, "edge_merge_thr"_a, "cluster_min_mag"_a,
        "max_aspect_ratio"_a, "min_box_area"_a, "gamma"_a, "kappa"_a);
}
