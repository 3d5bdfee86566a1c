// SPDX-License-Identifier: Apache-2.0
// The border of instance_norm: every rule about its arguments is checked here, once.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/check.h"
#include "common/python_args.h"
#include "ops/instance_norm/instance_norm.h"
#include "ops/rooms.h"

namespace py = pybind11;

namespace gansparse {
namespace {

using instance_norm::Activation;
using instance_norm::Problem;
using instance_norm::Type;

const Check check("instance_norm");

// As the input: its dtype and device, and its shape as pictures, which lie in channels_last on
// CUDA.
void check_pictures(const TensorView& view, const TensorView& x, const char* name) {
  if (view.dtype != x.dtype || view.device != x.device || !view.same_shape(x)) {
    refuse(check.op(), name,
           std::string("be ") + name_of(x.dtype) + " " + x.shape_text() + " on " + x.device.name(),
           view.text());
  }
  if (!view.device.is_cuda()) return check.contiguous(view, name);
  int64_t expected = 1;
  bool fits = true;
  for (const int i : {1, 3, 2, 0}) {
    fits = fits && (view.shape[i] == 1 || view.strides[i] == expected);
    expected *= view.shape[i];
  }
  if (!fits && view.numel() > 0) refuse(check.op(), name, "be channels_last", view.text());
  if (reinterpret_cast<uintptr_t>(view.data) % 16 != 0) {
    refuse(check.op(), name, "begin at a multiple of 16 bytes", view.text() + " elsewhere");
  }
}

const float* check_channels(const TensorView& view, const TensorView& x, const char* name,
                            bool one = false) {
  const int64_t size = one ? 1 : x.shape[1];
  if (view.dtype != DType::kFloat32 || view.ndim != 1 || view.shape[0] != size ||
      view.device != x.device) {
    refuse(check.op(), name, "be float32 [" + std::to_string(size) + "] on " + x.device.name(),
           view.text());
  }
  check.contiguous(view, name);
  return view.as<const float>();
}

// Of parts of the input.
const float* check_moments(const TensorView& view, const TensorView& x) {
  const bool fits = view.dtype == DType::kFloat32 && view.ndim == 4 &&
                    view.shape[0] == x.shape[0] && view.shape[1] > 0 && view.shape[2] == 3 &&
                    view.shape[3] == x.shape[1] && view.device == x.device;
  if (!fits) {
    refuse(check.op(), "moments",
           "be float32 [" + std::to_string(x.shape[0]) + ", P, 3, " + std::to_string(x.shape[1]) +
               "] on " + x.device.name(),
           view.text());
  }
  check.contiguous(view, "moments");
  return view.as<const float>();
}

Activation check_activation(const std::string& name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "leaky_relu" || name == "prelu") return Activation::kLeaky;
  if (name == "tanh") return Activation::kTanh;
  refuse(check.op(), "activation", "be none, relu, leaky_relu, prelu or tanh", name);
}

void norm(const py::object& input, const py::object& weight, const py::object& bias, float eps,
          const py::object& residual, const std::string& activation, const py::object& slope,
          const py::object& output, uintptr_t stream, const py::object& moments) {
  // ---- Take the views and check them ------------------------------------------------------------
  const char* op = check.op();
  const TensorView x = view_of(input, op, "input");
  const std::optional<TensorView> weight_view = optional_view_of(weight, op, "weight");
  const std::optional<TensorView> bias_view = optional_view_of(bias, op, "bias");
  const std::optional<TensorView> residual_view = optional_view_of(residual, op, "residual");
  const std::optional<TensorView> moment_view = optional_view_of(moments, op, "moments");
  const TensorView y = view_of(output, op, "output");
  const bool cuda = x.device.is_cuda();
  const bool known =
      cuda ? x.dtype == DType::kFloat16 || x.dtype == DType::kBFloat16 : x.dtype == DType::kFloat32;
  check.that(
      known && x.ndim == 4, "input",
      cuda ? "be float16 or bfloat16 [N, C, H, W] on cuda" : "be float32 [N, C, H, W] on cpu",
      x.text());
  check.that(!cuda || x.shape[1] % 8 == 0, "input", "have a multiple of 8 channels on cuda",
             x.text());
  check_pictures(x, x, "input");
  check.that(eps >= 0, "eps", "be at least 0", std::to_string(eps));
  Problem p{};
  p.batch = x.shape[0], p.channels = x.shape[1], p.pixels = x.shape[2] * x.shape[3];
  p.eps = eps;
  if (weight_view) p.weight = check_channels(*weight_view, x, "weight");
  if (bias_view) p.bias = check_channels(*bias_view, x, "bias");
  if (residual_view) check_pictures(*residual_view, x, "residual");
  if (moment_view) {
    check.that(cuda, "moments", "be None on cpu", moment_view->text());
    p.moments = check_moments(*moment_view, x);
    p.parts = moment_view->shape[1];
  }
  check_pictures(y, x, "output");
  check.that(x.described || y.data != x.data || x.numel() == 0, "output",
             "be another array than the input", "the input itself");
  p.activation = check_activation(activation);
  if (PyFloat_Check(slope.ptr())) {
    p.slope = slope.cast<float>();
  } else {
    const TensorView slope_view = view_of(slope, op, "slope");
    const bool one = slope_view.numel() == 1;
    p.slopes = check_channels(slope_view, x, "slope", one);
    p.slope_step = one ? 0 : 1;
  }
  if (x.described || x.numel() == 0) return;

  // ---- Norm -------------------------------------------------------------------------------------
  p.input = x.data;
  p.residual = residual_view ? residual_view->data : nullptr;
  p.output = y.data;
  const py::gil_scoped_release released;
  if (!cuda) return instance_norm::run_cpu(p);
#ifdef GANSPARSE_WITH_CUDA
  instance_norm::run_cuda(p, x.dtype == DType::kFloat16 ? Type::kFloat16 : Type::kBFloat16,
                          x.device.index, stream);
#else
  (void)stream;
  throw DeviceError(
      "instance_norm: this gansparse was built without CUDA; install it where nvcc is found, or "
      "move the input to the CPU");
#endif
}

}  // namespace

std::vector<std::string> bind_instance_norm(py::module_& module) {
  module.def("instance_norm", &norm, py::arg("input"), py::arg("weight"), py::arg("bias"),
             py::arg("eps"), py::arg("residual"), py::arg("activation"), py::arg("slope"),
             py::arg("output"), py::arg("stream") = uintptr_t{0}, py::arg("moments") = py::none());
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
