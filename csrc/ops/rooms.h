// SPDX-License-Identifier: Apache-2.0
// The list of ops. A new room adds its declaration and its line in kRooms.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

namespace gansparse {

// Defines the op's function in the module; returns the implementations that were built.
using Bind = std::vector<std::string> (*)(pybind11::module_& module);

std::vector<std::string> bind_feature_moments(pybind11::module_& module);
std::vector<std::string> bind_instance_norm(pybind11::module_& module);
std::vector<std::string> bind_mask_update(pybind11::module_& module);
std::vector<std::string> bind_masked_adam(pybind11::module_& module);
std::vector<std::string> bind_sparse_conv2d(pybind11::module_& module);

struct Room {
  const char* op;
  Bind bind;
};

inline constexpr Room kRooms[] = {
    {"feature_moments", &bind_feature_moments}, {"instance_norm", &bind_instance_norm},
    {"mask_update", &bind_mask_update},         {"masked_adam", &bind_masked_adam},
    {"sparse_conv2d", &bind_sparse_conv2d},
};

}  // namespace gansparse
