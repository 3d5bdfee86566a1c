// SPDX-License-Identifier: Apache-2.0
// Memory for a kernel's own sums, from whoever allocates for the whole program. The core knows no
// torch: Python puts in torch's caching allocator (gansparse/ops/_library.py), so a call can use
// what torch keeps free, a captured graph has its own, and where there is none left it is torch's
// own error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace gansparse {

struct DeviceMemorySource {
  // Of at least this many bytes, at a multiple of 256; throws where there are none.
  std::function<void*(size_t bytes, int device, uintptr_t stream)> take;
  // What was launched on that stream before may go on using it; must not throw.
  std::function<void(void* memory)> give_back;
};

inline DeviceMemorySource& device_memory_source() {
  static DeviceMemorySource source;
  return source;
}

}  // namespace gansparse
