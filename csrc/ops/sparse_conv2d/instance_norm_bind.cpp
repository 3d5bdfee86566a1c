// SPDX-License-Identifier: Apache-2.0
// The border of instance_norm, which lives in the room of sparse_conv2d.
#include <pybind11/pybind11.h>

#include "common/check.h"
#include "common/python_args.h"
#include "ops/rooms.h"
#include "ops/sparse_conv2d/instance_norm.h"

namespace py = pybind11;

namespace gansparse {
namespace {

using sparse_conv2d::Activation;
using sparse_conv2d::NormProblem;

const Check check("instance_norm");

const float* take(const TensorView& view, const char* name) {
  check.dtype(view, name, DType::kFloat32);
  check.device(view, name, {});
  check.contiguous(view, name);
  return view.as<const float>();
}

const float* take_channels(const py::object& array, const char* name, int64_t channels) {
  const std::optional<TensorView> view = optional_view_of(array, check.op(), name);
  if (!view) return nullptr;
  check.that(view->ndim == 1 && view->shape[0] == channels, name,
             "have one number a channel of the input", view->text());
  return take(*view, name);
}

void norm(const py::object& input, const py::object& weight, const py::object& bias,
          const py::object& residual, float eps, const std::string& activation,
          const py::object& slope, const py::object& output) {
  const TensorView x = view_of(input, check.op(), "input");
  const TensorView y = view_of(output, check.op(), "out");
  check.that(x.ndim == 4, "input", "be float32 [N, C, H, W]", x.text());
  check.that(y.same_shape(x) && (y.data != x.data || x.numel() == 0), "out",
             "be another array of the input's shape", y.text());
  NormProblem p{};
  p.batch = x.shape[0], p.channels = x.shape[1], p.pixels = x.shape[2] * x.shape[3];
  p.input = take(x, "input");
  take(y, "out");
  p.output = y.as<float>();
  p.weight = take_channels(weight, "weight", p.channels);
  p.bias = take_channels(bias, "bias", p.channels);
  if (const auto added = optional_view_of(residual, check.op(), "residual")) {
    check.that(added->same_shape(x), "residual", "have the input's shape", added->text());
    p.residual = take(*added, "residual");
  }
  p.eps = eps;
  check.that(activation == "none" || activation == "relu" || activation == "leaky_relu" ||
                 activation == "prelu",
             "activation", "be none, relu, leaky_relu or prelu", activation);
  p.activation = activation == "none"   ? Activation::kNone
                 : activation == "relu" ? Activation::kRelu
                                        : Activation::kLeaky;
  float number = 0;
  if (PyFloat_Check(slope.ptr())) {
    number = slope.cast<float>();
    p.slopes = &number;
  } else {
    const TensorView slopes = view_of(slope, check.op(), "slope");
    p.slope_step = slopes.numel() == 1 ? 0 : 1;
    p.slopes = p.slope_step ? take_channels(slope, "slope", p.channels) : take(slopes, "slope");
  }
  if (x.numel() == 0) return;
  const py::gil_scoped_release released;
  sparse_conv2d::run_norm(p);
}

}  // namespace

void bind_instance_norm(py::module_& module) {
  module.def("instance_norm", &norm, py::arg("input"), py::arg("weight"), py::arg("bias"),
             py::arg("residual"), py::arg("eps"), py::arg("activation"), py::arg("slope"),
             py::arg("out"));
}

}  // namespace gansparse
