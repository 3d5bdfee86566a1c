// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace gansparse {

// Bytes of shared memory for each of `blocks` that are to fit beside each other on a multiprocessor
// whose blocks may have `limit` alone: it has 1 KB more, and CUDA takes 1 KB for every block.
inline int64_t shared_beside(int64_t limit, int64_t blocks) {
  constexpr int64_t kReserved = 1024;
  return (limit + kReserved) / blocks - kReserved;
}

}  // namespace gansparse
