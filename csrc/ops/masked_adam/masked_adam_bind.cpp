// SPDX-License-Identifier: Apache-2.0
// The border of masked_adam: every rule about its arguments is checked here, once.
#include <pybind11/pybind11.h>

#include "common/check.h"
#include "common/python_args.h"
#include "ops/masked_adam/masked_adam.h"
#include "ops/rooms.h"

namespace py = pybind11;

namespace gansparse {
namespace {

using masked_adam::CudaType;
using masked_adam::Hyper;
using masked_adam::Item;

const Check check("masked_adam");

using Views = std::vector<TensorView>;
using OptionalViews = std::vector<std::optional<TensorView>>;

std::string indexed(const char* name, size_t i) {
  return std::string(name) + "[" + std::to_string(i) + "]";
}

void check_length(size_t got, size_t wanted, const char* name) {
  if (got != wanted) {
    refuse(check.op(), name, "have one item a parameter (" + std::to_string(wanted) + ")",
           std::to_string(got));
  }
}

// The state of 16-bit parameters is float32.
DType state_dtype(DType param) {
  return param == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

void check_param(const TensorView& param, const TensorView& first, size_t i) {
  const bool sixteen_bits = param.dtype == DType::kFloat16 || param.dtype == DType::kBFloat16;
  const bool known = param.dtype == DType::kFloat32 || param.dtype == DType::kFloat64 ||
                     (sixteen_bits && param.device.is_cuda());
  if (!known) {
    refuse(check.op(), indexed("params", i),
           "be float32 or float64 (on CUDA also float16 or bfloat16)", param.text());
  }
  if (param.dtype != first.dtype || param.device != first.device) {
    refuse(check.op(), indexed("params", i), "have the dtype and device of params[0]",
           param.text() + " beside " + first.text());
  }
  if (!param.is_dense()) {
    refuse(check.op(), indexed("params", i), "be dense in memory",
           param.text() + " with gaps between its elements");
  }
}

void check_beside(const TensorView& view, const TensorView& param, DType dtype, const char* name,
                  size_t i) {
  if (view.dtype != dtype || !view.same_shape(param) || view.device != param.device) {
    refuse(check.op(), indexed(name, i),
           std::string("be ") + name_of(dtype) + " " + param.shape_text() + " on " +
               param.device.name(),
           view.text());
  }
  if (!view.same_layout(param)) {
    refuse(check.op(), indexed(name, i), "have the strides of its parameter",
           view.text() + " with others");
  }
}

void check_mask(const TensorView& mask, const TensorView& param, size_t i) {
  if (mask.dtype != DType::kBool && mask.dtype != DType::kUInt8) {
    refuse(check.op(), indexed("masks", i), "be bool or uint8", mask.text());
  }
  check_beside(mask, param, mask.dtype, "masks", i);
}

void check_step(const TensorView& step, const TensorView& param, size_t i) {
  if (step.dtype != DType::kFloat32 || step.numel() != 1) {
    refuse(check.op(), indexed("steps", i), "be one float32", step.text());
  }
  if (step.device.is_cuda() && step.device != param.device) {
    refuse(check.op(), indexed("steps", i), "be on the CPU or on " + param.device.name(),
           step.text());
  }
  if (!step.device.is_cuda() && !step.described && !(*step.as<float>() >= 1.0f)) {
    refuse(check.op(), indexed("steps", i), "be at least 1: count the step before the call",
           std::to_string(*step.as<float>()));
  }
}

void check_hyper(const Hyper& h) {
  const auto in = [](double x, double low, double high) { return x >= low && x < high; };
  const auto that = [](bool holds, const char* name, const char* rule, double got) {
    check.that(holds, name, rule, std::to_string(got));
  };
  that(in(h.lr, 0, INFINITY), "lr", "be finite and at least 0", h.lr);
  that(in(h.beta1, 0, 1), "beta1", "be at least 0 and less than 1", h.beta1);
  that(in(h.beta2, 0, 1), "beta2", "be at least 0 and less than 1", h.beta2);
  that(in(h.eps, 0, INFINITY), "eps", "be finite and at least 0", h.eps);
  that(in(h.weight_decay, 0, INFINITY), "weight_decay", "be finite and at least 0", h.weight_decay);
}

// lr is a number, or an array of one element. On the CPU its value goes into `hyper`; on the
// device the kernel reads it, and its address is returned.
const float* take_lr(py::handle lr, const TensorView& param, Hyper* hyper) {
  hyper->lr = 0;
  if (PyFloat_Check(lr.ptr()) || PyLong_Check(lr.ptr())) {
    hyper->lr = lr.cast<double>();
    return nullptr;
  }
  const TensorView view = view_of(lr, check.op(), "lr");
  const bool on_cpu = !view.device.is_cuda();
  if (view.numel() != 1 ||
      !(view.dtype == DType::kFloat32 || (on_cpu && view.dtype == DType::kFloat64))) {
    refuse(check.op(), "lr", "be a number or one float32", view.text());
  }
  if (!on_cpu) {
    check.device(view, "lr", param.device);
    return view.as<float>();
  }
  if (!view.described) {
    hyper->lr = view.dtype == DType::kFloat32 ? *view.as<float>() : *view.as<double>();
  }
  return nullptr;
}

[[maybe_unused]] CudaType cuda_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return CudaType::kFloat16;
    case DType::kBFloat16:
      return CudaType::kBFloat16;
    case DType::kFloat64:
      return CudaType::kFloat64;
    default:
      return CudaType::kFloat32;
  }
}

void masked_adam_step(const py::object& params, const py::object& grads, const py::object& exp_avgs,
                      const py::object& exp_avg_sqs, const py::object& steps,
                      const py::object& masks, const py::object& max_exp_avg_sqs,
                      const py::object& lr, double beta1, double beta2, double eps,
                      double weight_decay, bool decoupled_weight_decay, bool maximize,
                      uintptr_t stream) {
  // ---- Take the views ---------------------------------------------------------------------------
  const char* op = check.op();
  const Views param_views = views_of(params, op, "params");
  const Views grad_views = views_of(grads, op, "grads");
  const Views exp_avg_views = views_of(exp_avgs, op, "exp_avgs");
  const Views exp_avg_sq_views = views_of(exp_avg_sqs, op, "exp_avg_sqs");
  const Views step_views = views_of(steps, op, "steps");
  const OptionalViews mask_views = optional_views_of(masks, op, "masks");
  const OptionalViews max_views = optional_views_of(max_exp_avg_sqs, op, "max_exp_avg_sqs");
  const bool amsgrad = !max_views.empty();

  // ---- Check them -------------------------------------------------------------------------------
  const size_t count = param_views.size();
  check_length(grad_views.size(), count, "grads");
  check_length(exp_avg_views.size(), count, "exp_avgs");
  check_length(exp_avg_sq_views.size(), count, "exp_avg_sqs");
  check_length(step_views.size(), count, "steps");
  if (!masks.is_none()) check_length(mask_views.size(), count, "masks");
  if (amsgrad) check_length(max_views.size(), count, "max_exp_avg_sqs");

  Hyper hyper{0, beta1, beta2, eps, weight_decay, decoupled_weight_decay, maximize};
  const float* device_lr = take_lr(lr, count ? param_views[0] : TensorView{}, &hyper);
  check_hyper(hyper);

  std::vector<Item> items;
  items.reserve(count);
  bool described = false;
  for (size_t i = 0; i < count; ++i) {
    const TensorView& param = param_views[i];
    const DType state = state_dtype(param.dtype);
    check_param(param, param_views[0], i);
    check_beside(grad_views[i], param, param.dtype, "grads", i);
    check_beside(exp_avg_views[i], param, state, "exp_avgs", i);
    check_beside(exp_avg_sq_views[i], param, state, "exp_avg_sqs", i);
    check_step(step_views[i], param, i);
    const bool masked = !mask_views.empty() && mask_views[i].has_value();
    if (masked) check_mask(*mask_views[i], param, i);
    if (amsgrad) {
      check.that(max_views[i].has_value(), indexed("max_exp_avg_sqs", i), "be an array", "None");
      check_beside(*max_views[i], param, state, "max_exp_avg_sqs", i);
    }
    described = described || param.described;
    if (param.numel() == 0) continue;
    const bool step_on_device = step_views[i].device.is_cuda();
    items.push_back(Item{param.data, grad_views[i].data, exp_avg_views[i].data,
                         exp_avg_sq_views[i].data, amsgrad ? max_views[i]->data : nullptr,
                         masked ? mask_views[i]->as<const uint8_t>() : nullptr,
                         step_on_device ? step_views[i].as<float>() : nullptr, param.numel(),
                         step_on_device || param.described ? 0.0f : *step_views[i].as<float>()});
  }
  if (described || items.empty()) return;

  // ---- Step -------------------------------------------------------------------------------------
  const TensorView& first = param_views[0];
  const int n = static_cast<int>(items.size());
  const py::gil_scoped_release released;
  if (first.device.is_cuda()) {
#ifdef GANSPARSE_WITH_CUDA
    masked_adam::step_cuda(cuda_type(first.dtype), items.data(), n, hyper, device_lr,
                           first.device.index, stream);
#else
    (void)device_lr;
    (void)stream;
    throw DeviceError(
        "masked_adam: this gansparse was built without CUDA; install it where nvcc "
        "is found, or move the parameters to the CPU");
#endif
  } else if (first.dtype == DType::kFloat64) {
    masked_adam::step_cpu<double>(items.data(), n, hyper);
  } else {
    masked_adam::step_cpu<float>(items.data(), n, hyper);
  }
}

}  // namespace

std::vector<std::string> bind_masked_adam(py::module_& module) {
  module.def("masked_adam", &masked_adam_step, py::arg("params"), py::arg("grads"),
             py::arg("exp_avgs"), py::arg("exp_avg_sqs"), py::arg("steps"), py::arg("masks"),
             py::arg("max_exp_avg_sqs"), py::arg("lr"), py::arg("beta1"), py::arg("beta2"),
             py::arg("eps"), py::arg("weight_decay"), py::arg("decoupled_weight_decay"),
             py::arg("maximize"), py::arg("stream") = uintptr_t{0},
             "masks: a list, or None; max_exp_avg_sqs: a list, or None or empty for no amsgrad.");
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
