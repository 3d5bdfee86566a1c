// SPDX-License-Identifier: Apache-2.0
// Checks of arguments. A message names the op, the argument, the rule and what was given:
//   masked_adam: grads[3] must be float32 [64, 3, 3], got float64 [64, 3, 3]
#pragma once

#include <stdexcept>
#include <string>

#include "common/tensor_view.h"

namespace gansparse {

// Becomes gansparse.errors.InputError in Python.
struct InputError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// A failure of the CUDA runtime or a missing CUDA build. Becomes RuntimeError in Python.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void refuse(const std::string& op, const std::string& argument,
                                const std::string& rule, const std::string& got) {
  throw InputError(op + ": " + argument + " must " + rule + ", got " + got);
}

// check("masked_adam") names the op once; its members name the rest.
class Check {
 public:
  explicit Check(const char* op) : op_(op) {}

  void that(bool holds, const std::string& argument, const std::string& rule,
            const std::string& got) const {
    if (!holds) refuse(op_, argument, rule, got);
  }

  void dtype(const TensorView& view, const std::string& argument, DType wanted) const {
    if (view.dtype != wanted) {
      refuse(op_, argument, std::string("be ") + name_of(wanted), view.text());
    }
  }

  void device(const TensorView& view, const std::string& argument, Device wanted) const {
    if (view.device != wanted) {
      refuse(op_, argument, "be on " + wanted.name(), view.text() + " on " + view.device.name());
    }
  }

  void contiguous(const TensorView& view, const std::string& argument) const {
    if (!view.is_contiguous()) {
      refuse(op_, argument, "be contiguous", view.text() + " with other strides");
    }
  }

  const char* op() const { return op_; }

 private:
  const char* op_;
};

}  // namespace gansparse
