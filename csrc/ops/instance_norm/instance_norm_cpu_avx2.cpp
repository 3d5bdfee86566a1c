// SPDX-License-Identifier: Apache-2.0
// Compiled with -mavx2 -mfma.
#include "ops/instance_norm/instance_norm_planes.h"

namespace gansparse::instance_norm {

void norm_planes_avx2(const Problem& p, int64_t begin, int64_t end) {
  norm_planes<32>(p, begin, end);
}

}  // namespace gansparse::instance_norm
