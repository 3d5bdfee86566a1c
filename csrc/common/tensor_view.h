// SPDX-License-Identifier: Apache-2.0
// A typed, non-owning view of an array: all that a kernel's host code knows about its arguments.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

namespace gansparse {

enum class DType : uint8_t {
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
  kUInt8,
  kBool,
  kInt16,
  kInt32,
  kInt64
};

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kUInt8:
      return "uint8";
    case DType::kBool:
      return "bool";
    case DType::kInt16:
      return "int16";
    case DType::kInt32:
      return "int32";
    case DType::kInt64:
      return "int64";
  }
  return "unknown";
}

inline int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kUInt8:
    case DType::kBool:
      return 1;
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kInt16:
      return 2;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
  }
  return 0;
}

enum class DeviceType : uint8_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;

  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
  bool operator!=(const Device& other) const { return !(*this == other); }
  bool is_cuda() const { return type == DeviceType::kCuda; }
  std::string name() const { return is_cuda() ? "cuda:" + std::to_string(index) : "cpu"; }
};

constexpr int kMaxDims = 8;

struct TensorView {
  void* data = nullptr;  // null for an empty array and for a described one (see python_args.h)
  DType dtype = DType::kFloat32;
  Device device;
  int ndim = 0;
  std::array<int64_t, kMaxDims> shape{};
  std::array<int64_t, kMaxDims> strides{};  // in elements
  bool described = false;                   // only the description is known: check, don't compute

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }

  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }

  bool same_shape(const TensorView& other) const {
    return ndim == other.ndim &&
           std::equal(shape.begin(), shape.begin() + ndim, other.shape.begin());
  }

  // Element i of one lies where element i of the other does. A dimension of size 1 has no stride.
  bool same_layout(const TensorView& other) const {
    if (!same_shape(other)) return false;
    if (numel() == 0) return true;
    for (int i = 0; i < ndim; ++i) {
      if (shape[i] != 1 && strides[i] != other.strides[i]) return false;
    }
    return true;
  }

  // Row-major without holes.
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != expected) return numel() == 0;
      expected *= shape[i];
    }
    return true;
  }

  // Some order of the dimensions is row-major without holes: numel() elements from `data` on are
  // the array, each once (true of contiguous, channels_last and transposed arrays).
  bool is_dense() const {
    if (is_contiguous()) return true;
    int64_t expected = 1;  // the stride of the next dimension outwards
    std::array<bool, kMaxDims> placed{};
    for (int n = 0; n < ndim; ++n) {
      int next = -1;
      for (int i = 0; i < ndim; ++i) {
        if (!placed[i] && (shape[i] == 1 || strides[i] == expected)) next = i;
      }
      if (next < 0) return false;
      placed[next] = true;
      expected *= shape[next];
    }
    return true;
  }

  std::string shape_text() const {
    std::string text = "[";
    for (int i = 0; i < ndim; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
  }

  // "float32 [64, 3, 3]", with the device where it is not the CPU.
  std::string text() const {
    std::string text = std::string(name_of(dtype)) + " " + shape_text();
    return device.is_cuda() ? text + " on " + device.name() : text;
  }
};

}  // namespace gansparse
