// The Python module avfast._C: the only file that knows pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

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
  info["compiler"] = __VERSION__;
  return info;
}

}  // namespace
}  // namespace avfast

PYBIND11_MODULE(_C, m) {
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
  m.def("build_info", &avfast::build_info, "How this module was built: version, cuda, cuda_archs, openmp, compiler.");
}
