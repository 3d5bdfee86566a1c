// SPDX-License-Identifier: Apache-2.0
// The border of mask_update: every rule about its arguments is checked here, once.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/check.h"
#include "common/python_args.h"
#include "ops/mask_update/mask_update.h"
#include "ops/rooms.h"

namespace py = pybind11;

namespace gansparse {
namespace {

using mask_update::CudaType;
using mask_update::Item;

const Check check("mask_update");

std::string indexed(const char* name, size_t i) {
  return std::string(name) + "[" + std::to_string(i) + "]";
}

void check_length(size_t got, size_t wanted, const char* name) {
  if (got != wanted) {
    refuse(check.op(), name, "have one item a score (" + std::to_string(wanted) + ")",
           std::to_string(got));
  }
}

void check_score(const TensorView& score, const TensorView& first, size_t i) {
  const bool sixteen_bits = score.dtype == DType::kFloat16 || score.dtype == DType::kBFloat16;
  const bool known = score.dtype == DType::kFloat32 || score.dtype == DType::kFloat64 ||
                     (sixteen_bits && score.device.is_cuda());
  if (!known) {
    refuse(check.op(), indexed("scores", i),
           "be float32 or float64 (on CUDA also float16 or bfloat16)", score.text());
  }
  if (score.dtype != first.dtype || score.device != first.device) {
    refuse(check.op(), indexed("scores", i), "have the dtype and device of scores[0]",
           score.text() + " beside " + first.text());
  }
  if (!score.is_dense()) {
    refuse(check.op(), indexed("scores", i), "be dense in memory",
           score.text() + " with gaps between its elements");
  }
}

void check_mask(const TensorView& mask, const TensorView& score, size_t i) {
  const bool bytes = mask.dtype == DType::kBool || mask.dtype == DType::kUInt8;
  if (!bytes || !mask.same_shape(score) || mask.device != score.device) {
    refuse(check.op(), indexed("masks", i),
           "be bool or uint8 " + score.shape_text() + " on " + score.device.name(), mask.text());
  }
  if (!mask.same_layout(score)) {
    refuse(check.op(), indexed("masks", i), "have the strides of its score",
           mask.text() + " with others");
  }
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

void update(const py::object& scores, const py::object& masks, const std::vector<int64_t>& prune,
            bool magnitude, bool monotone, uintptr_t stream) {
  // ---- Take the views and check them ------------------------------------------------------------
  const std::vector<TensorView> score_views = views_of(scores, check.op(), "scores");
  const std::vector<TensorView> mask_views = views_of(masks, check.op(), "masks");
  const size_t count = score_views.size();
  check_length(mask_views.size(), count, "masks");
  check_length(prune.size(), count, "prune");
  std::vector<Item> items;
  items.reserve(count);
  bool described = false;
  for (size_t i = 0; i < count; ++i) {
    const TensorView& score = score_views[i];
    check_score(score, score_views[0], i);
    check_mask(mask_views[i], score, i);
    const int64_t numel = score.numel();
    check.that(prune[i] >= 0 && prune[i] <= numel, indexed("prune", i),
               "be 0 to " + std::to_string(numel), std::to_string(prune[i]));
    described = described || score.described;
    if (numel > 0) items.push_back({score.data, mask_views[i].as<uint8_t>(), numel, prune[i]});
  }
  if (described || items.empty()) return;

  // ---- Update -----------------------------------------------------------------------------------
  const TensorView& first = score_views[0];
  const int number = static_cast<int>(items.size());
  const py::gil_scoped_release released;
  if (first.device.is_cuda()) {
#ifdef GANSPARSE_WITH_CUDA
    mask_update::update_cuda(cuda_type(first.dtype), items.data(), number, magnitude, monotone,
                             first.device.index, stream);
#else
    (void)stream;
    throw DeviceError(
        "mask_update: this gansparse was built without CUDA; install it where nvcc is found, or "
        "move the scores to the CPU");
#endif
  } else if (first.dtype == DType::kFloat32) {
    mask_update::update_cpu<float>(items.data(), number, magnitude, monotone);
  } else {
    mask_update::update_cpu<double>(items.data(), number, magnitude, monotone);
  }
}

}  // namespace

std::vector<std::string> bind_mask_update(py::module_& module) {
  module.def("mask_update", &update, py::arg("scores"), py::arg("masks"), py::arg("prune"),
             py::arg("magnitude"), py::arg("monotone"), py::arg("stream") = uintptr_t{0});
  return {
      "plain",
#ifdef GANSPARSE_WITH_CUDA
      "cuda",
#endif
  };
}

}  // namespace gansparse
