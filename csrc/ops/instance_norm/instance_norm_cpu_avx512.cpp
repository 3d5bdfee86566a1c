// SPDX-License-Identifier: Apache-2.0
// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma.
#include "ops/instance_norm/instance_norm_planes.h"

namespace gansparse::instance_norm {

void norm_planes_avx512(const Problem& p, int64_t begin, int64_t end) {
  norm_planes<64>(p, begin, end);
}

}  // namespace gansparse::instance_norm
