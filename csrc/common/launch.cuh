// SPDX-License-Identifier: Apache-2.0
// The host side of a launch: the right device, the caller's stream, a checked result.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "common/check.h"
#include "common/cuda_language.cuh"
#include "common/device_memory.h"

namespace gansparse {

// An error is told once: the runtime is made to forget it, or the next launch's check, which may be
// of another op, would tell it again.
inline void check_cuda(cudaError_t status, const char* op, const char* what) {
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    throw DeviceError(std::string(op) + ": " + what + " failed: " + cudaGetErrorString(status));
  }
}

// What the last launch itself got wrong; it does not wait for the kernel.
inline void check_launch(const char* op) { check_cuda(cudaGetLastError(), op, "kernel launch"); }

// Starts a kernel on the stream; it is not waited for. Without a compiler for devices the emulator
// runs it (tests/emulated_gpu).
template <class... Parameters, class... Arguments>
void launch_kernel(const char* op, void (*kernel)(Parameters...), unsigned blocks, unsigned threads,
                   int64_t shared_bytes, cudaStream_t stream, const Arguments&... arguments) {
  const auto bytes = static_cast<size_t>(shared_bytes);
#ifdef __CUDACC__
  kernel<<<blocks, threads, bytes, stream>>>(arguments...);
#else
  (void)stream;
  if (blocks == 0 || threads == 0 || threads > 1024) {
    throw DeviceError(std::string(op) + ": kernel launch failed: invalid configuration");
  }
  emulator::launch({dim3(blocks), dim3(threads), bytes, 1}, [&] { kernel(arguments...); });
#endif
  check_launch(op);
}

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
    // In a destructor there is no one to tell.
    if (changed_ && cudaSetDevice(previous_) != cudaSuccess) (void)cudaGetLastError();
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// Memory for the kernels of one call on the current device; it is given back in the order of the
// stream, so nothing waits.
class StreamMemory {
 public:
  StreamMemory(size_t bytes, cudaStream_t stream, const char* op) {
    const auto& take = device_memory_source().take;
    if (!take) throw DeviceError(std::string(op) + ": nobody has said where device memory is from");
    int device = 0;
    check_cuda(cudaGetDevice(&device), op, "cudaGetDevice");
    memory_ = take(bytes, device, reinterpret_cast<uintptr_t>(stream));
  }
  ~StreamMemory() { device_memory_source().give_back(memory_); }
  StreamMemory(const StreamMemory&) = delete;
  StreamMemory& operator=(const StreamMemory&) = delete;

  // From this byte on; begins at a multiple of 256.
  template <class T>
  T* at(size_t byte) const {
    return reinterpret_cast<T*>(static_cast<char*>(memory_) + byte);
  }

 private:
  void* memory_ = nullptr;
};

}  // namespace gansparse
