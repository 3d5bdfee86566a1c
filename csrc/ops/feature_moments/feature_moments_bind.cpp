// SPDX-License-Identifier: Apache-2.0
// The border of feature_moments: every rule about its arguments is checked here, once.
#include <pybind11/pybind11.h>

#include "common/check.h"
#include "common/python_args.h"
#include "ops/feature_moments/feature_moments.h"
#include "ops/rooms.h"

namespace py = pybind11;

namespace gansparse {
namespace {

using feature_moments::FeatureType;
using feature_moments::Problem;

const Check check("feature_moments");

FeatureType feature_type(const TensorView& features) {
  switch (features.dtype) {
    case DType::kFloat16:
      return FeatureType::kFloat16;
    case DType::kBFloat16:
      return FeatureType::kBFloat16;
    case DType::kFloat32:
      return FeatureType::kFloat32;
    case DType::kFloat64:
      return FeatureType::kFloat64;
    default:
      refuse(check.op(), "features", "be float16, bfloat16, float32 or float64", features.text());
  }
}

// total, second and shift: float64 of a shape that the features give, beside them, without gaps.
void check_beside(const TensorView& view, const TensorView& features, int dims, const char* name) {
  const int64_t width = features.shape[1];
  bool fits = view.dtype == DType::kFloat64 && view.ndim == dims;
  for (int i = 0; fits && i < dims; ++i) fits = view.shape[i] == width;
  if (!fits || view.device != features.device) {
    const std::string size = std::to_string(width);
    refuse(
        check.op(), name,
        "be float64 [" + size + (dims == 2 ? ", " + size : "") + "] on " + features.device.name(),
        view.text());
  }
  check.contiguous(view, name);
}

void add(const py::object& features, const py::object& total, const py::object& second,
         const py::object& shift, uintptr_t stream) {
  // ---- Take the views and check them ------------------------------------------------------------
  const char* op = check.op();
  const TensorView x = view_of(features, op, "features");
  const TensorView sums = view_of(total, op, "total");
  const TensorView products = view_of(second, op, "second");
  const std::optional<TensorView> origin = optional_view_of(shift, op, "shift");
  const FeatureType type = feature_type(x);
  check.that(x.ndim == 2, "features", "have shape [N, F]", x.text());
  check.contiguous(x, "features");
  check_beside(sums, x, 1, "total");
  check_beside(products, x, 2, "second");
  if (origin) check_beside(*origin, x, 1, "shift");
  if (x.described || x.numel() == 0) return;

  // ---- Add --------------------------------------------------------------------------------------
  const Problem problem{type,
                        x.data,
                        origin ? origin->as<const double>() : nullptr,
                        sums.as<double>(),
                        products.as<double>(),
                        x.shape[0],
                        x.shape[1]};
  const py::gil_scoped_release released;
  if (x.device.is_cuda()) {
#ifdef GANSPARSE_WITH_CUDA
    feature_moments::add_cuda(problem, x.device.index, stream);
#else
    (void)stream;
    throw DeviceError(
        "feature_moments: this gansparse was built without CUDA; install it where nvcc is found, "
        "or move the features to the CPU");
#endif
  } else {
    feature_moments::add_cpu(problem);
  }
}

}  // namespace

std::vector<std::string> bind_feature_moments(py::module_& module) {
  module.def("feature_moments", &add, py::arg("features"), py::arg("total"), py::arg("second"),
             py::kw_only(), py::arg("shift") = py::none(), py::arg("stream") = uintptr_t{0});
  return {
      "plain",
#ifdef GANSPARSE_WITH_X86
      "avx2",
      "avx512",
#endif
#ifdef GANSPARSE_WITH_CUDA
      "cuda",
#endif
  };
}

}  // namespace gansparse
