// SPDX-License-Identifier: Apache-2.0
// What the CUDA runtime finds on this machine. Asked only when somebody asks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gansparse {

struct CudaDevice {
  std::string name;
  int major;
  int minor;
  int64_t memory_bytes;
};

struct CudaDevices {
  std::vector<CudaDevice> devices;
  int driver = 0;       // the newest CUDA that the driver knows, as 1000 major + 10 minor; 0: none
  std::string problem;  // why there are none, in the runtime's words; "" if there are some
};

CudaDevices find_cuda_devices();

}  // namespace gansparse
