// SPDX-License-Identifier: Apache-2.0
// The host side of a launch: the right device, the caller's stream, a checked result.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "common/check.h"

namespace gansparse {

inline void check_cuda(cudaError_t status, const char* op, const char* what) {
  if (status != cudaSuccess) {
    throw DeviceError(std::string(op) + ": " + what + " failed: " + cudaGetErrorString(status));
  }
}

// To be called straight after every <<<...>>>. Reports what the launch itself got wrong; it does
// not wait for the kernel.
inline void check_launch(const char* op) { check_cuda(cudaGetLastError(), op, "kernel launch"); }

// A stream handle as Python passes it (torch.cuda.current_stream().cuda_stream).
inline cudaStream_t stream_of(uintptr_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

// Makes `device` current while it lives.
class DeviceGuard {
 public:
  DeviceGuard(int device, const char* op) {
    check_cuda(cudaGetDevice(&previous_), op, "cudaGetDevice");
    if (device != previous_) {
      check_cuda(cudaSetDevice(device), op, "cudaSetDevice");
      changed_ = true;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);  // in a destructor there is no one to tell
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// Where the current device's StreamMemory comes from. CUDA's default pool gives all that is free
// back to the system whenever someone waits for the device; the next call would have to ask anew.
inline cudaMemPool_t memory_pool(const char* op) {
  constexpr uint64_t kKept = uint64_t{256} << 20;  // bytes
  static std::mutex lock;
  static std::map<int, cudaMemPool_t> pools;
  int device = 0;
  check_cuda(cudaGetDevice(&device), op, "cudaGetDevice");
  const std::lock_guard<std::mutex> guard(lock);
  if (const auto found = pools.find(device); found != pools.end()) return found->second;
  cudaMemPoolProps wanted{};
  wanted.allocType = cudaMemAllocationTypePinned;
  wanted.location.type = cudaMemLocationTypeDevice;
  wanted.location.id = device;
  cudaMemPool_t pool = nullptr;
  check_cuda(cudaMemPoolCreate(&pool, &wanted), op, "cudaMemPoolCreate");
  uint64_t kept = kKept;
  check_cuda(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept), op,
             "cudaMemPoolSetAttribute");
  return pools[device] = pool;
}

// Memory for the kernels of one call: allocated and freed in the order of the stream, so nothing
// waits, and a captured graph has its own.
class StreamMemory {
 public:
  StreamMemory(size_t bytes, cudaStream_t stream, const char* op) : stream_(stream) {
    check_cuda(cudaMallocFromPoolAsync(&memory_, bytes, memory_pool(op), stream), op,
               "cudaMallocFromPoolAsync");
  }
  ~StreamMemory() { cudaFreeAsync(memory_, stream_); }  // in a destructor there is no one to tell
  StreamMemory(const StreamMemory&) = delete;
  StreamMemory& operator=(const StreamMemory&) = delete;

  // From this byte on; begins at a multiple of 256.
  template <class T>
  T* at(size_t byte) const {
    return reinterpret_cast<T*>(static_cast<char*>(memory_) + byte);
  }

 private:
  void* memory_ = nullptr;
  cudaStream_t stream_;
};

}  // namespace gansparse
