// SPDX-License-Identifier: Apache-2.0
// Python arrays in, TensorView out. Included by <op>_bind.cpp and module.cpp only.
//
// Accepted: whatever speaks DLPack (torch, CuPy, NumPy), and TensorSpec, which describes an array
// without having one, so that a fake tensor goes through the very same checks as a real one.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "common/tensor_view.h"

namespace gansparse {

// The description of an array that has no memory: shape, strides, dtype and device.
struct TensorSpec {
  TensorView view;
};

// The view is borrowed: keep the Python object alive while it is used.
TensorView view_of(pybind11::handle array, const char* op, const std::string& argument);

// None → nothing.
std::optional<TensorView> optional_view_of(pybind11::handle array, const char* op,
                                           const std::string& argument);

// A list whose items are arrays; the argument's name gets the index: grads[3].
std::vector<TensorView> views_of(pybind11::handle list, const char* op,
                                 const std::string& argument);

// The same, but items (or the whole list) may be None.
std::vector<std::optional<TensorView>> optional_views_of(pybind11::handle list, const char* op,
                                                         const std::string& argument);

void bind_tensor_spec(pybind11::module_& module);

}  // namespace gansparse
