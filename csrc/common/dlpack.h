// SPDX-License-Identifier: Apache-2.0
// The part of the DLPack ABI (https://github.com/dmlc/dlpack, Apache-2.0) that we read.
//
// Two ways in: the capsule named "dltensor" that `__dlpack__()` returns (every producer), and the C
// exchange table behind `type(x).__dlpack_c_exchange_api__` (DLPack 1.2 and later: torch, some
// others), which costs no allocation. Field order is the ABI: do not reorder.
#pragma once

#include <cstdint>

namespace gansparse::dlpack {

constexpr int32_t kCpu = 1;
constexpr int32_t kCuda = 2;

enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

struct Device {
  int32_t type;
  int32_t index;
};

struct DataType {
  uint8_t code;  // TypeCode
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;    // in elements
  int64_t* strides;  // in elements; null means row-major in producers older than DLPack 1.2
  uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* manager_context;
  void (*deleter)(ManagedTensor* self);
};

struct Version {
  uint32_t major;
  uint32_t minor;
};

struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object_no_sync;
  void* managed_tensor_to_py_object_no_sync;
  // Fills `out` with a view borrowed from `py_object`, valid while the object lives and is not
  // resized. May be null. Returns 0, or -1 with a Python error set.
  int (*tensor_from_py_object_no_sync)(void* py_object, Tensor* out);
  void* current_work_stream;
};

}  // namespace gansparse::dlpack
