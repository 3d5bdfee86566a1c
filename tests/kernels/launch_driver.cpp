// SPDX-License-Identifier: Apache-2.0
// The host side of a launch (common/launch.cuh) with a CUDA runtime whose calls fail on request.
//   launch_driver
// Prints what does not hold, and how many; exits with 1 if there are any. Its <cuda_runtime.h> is
// the one of fake_cuda.
#include <cstdio>
#include <new>
#include <vector>

#include "common/launch.cuh"

namespace {

int wrong = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  ++wrong;
  std::printf("does not hold: %s\n", what);
}

template <class Error, class Call>
bool throws(const Call& call) {
  try {
    call();
  } catch (const Error&) {
    return true;
  }
  return false;
}

using gansparse::DeviceError;

void errors_are_told_once() {
  expect(throws<DeviceError>([] { gansparse::check_cuda(fake::fails(2), "op", "a call"); }),
         "a call that fails is told");
  expect(!throws<DeviceError>([] { gansparse::check_launch("op"); }),
         "a good launch after a failed call is good");
  fake::fails(9);
  expect(throws<DeviceError>([] { gansparse::check_launch("op"); }), "a failed launch is told");
  expect(!throws<DeviceError>([] { gansparse::check_launch("op"); }), "and told once");
}

void guard_restores_the_device() {
  fake::device = 3;
  {
    const gansparse::DeviceGuard guard(1, "op");
    expect(fake::device == 1, "the wanted device is current");
    fake::next_failure = 101;  // cudaSetDevice, at the end
  }
  expect(!throws<DeviceError>([] { gansparse::check_launch("op"); }),
         "what a guard's end can't do is no later launch's fault");
  fake::device = 3;
  {
    const gansparse::DeviceGuard guard(1, "op");
  }
  expect(fake::device == 3, "the former device is current again");
}

void memory_comes_from_the_source() {
  const auto stream = reinterpret_cast<cudaStream_t>(uintptr_t{77});
  expect(throws<DeviceError>([&] { const gansparse::StreamMemory memory(8, stream, "op"); }),
         "without a source there is a clear error");
  static char bytes[1024];
  static std::vector<void*> given_back;
  gansparse::device_memory_source().take = [](size_t count, int device, uintptr_t on) -> void* {
    if (count > sizeof(bytes)) throw std::bad_alloc();
    expect(device == 3 && on == 77, "memory is of the current device and the caller's stream");
    return bytes;
  };
  gansparse::device_memory_source().give_back = [](void* memory) { given_back.push_back(memory); };
  {
    const gansparse::StreamMemory memory(512, stream, "op");
    expect(memory.at<char>(256) == bytes + 256, "parts begin where they should");
    expect(given_back.empty(), "memory is kept while it is used");
  }
  expect(given_back.size() == 1 && given_back[0] == bytes, "memory is given back once");
  expect(throws<std::bad_alloc>([&] { const gansparse::StreamMemory memory(4096, stream, "op"); }),
         "the source's own error passes");
  expect(given_back.size() == 1, "what was not given is not given back");
}

}  // namespace

int main() {
  errors_are_told_once();
  guard_restores_the_device();
  memory_comes_from_the_source();
  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}
