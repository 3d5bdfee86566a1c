// SPDX-License-Identifier: Apache-2.0
// instance_norm on the CPU: shares the planes among the threads.
#include "common/cpu_features.h"
#include "common/parallel.h"
#include "ops/instance_norm/instance_norm.h"
#include "ops/instance_norm/instance_norm_planes.h"

namespace gansparse::instance_norm {
namespace {

constexpr int64_t kGrainPixels = 1 << 15;  // some 10 µs of work, for which a thread is worth waking

auto choose_planes() {
  using Planes = void (*)(const Problem&, int64_t, int64_t);
#ifdef GANSPARSE_WITH_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512:
      return Planes{&norm_planes_avx512};
    case SimdLevel::kAvx2:
      return Planes{&norm_planes_avx2};
    case SimdLevel::kPlain:
      break;
  }
#endif
  return Planes{&norm_planes<16>};
}

}  // namespace

void run_cpu(const Problem& problem) {
  const auto run = choose_planes();
  parallel_for(problem.batch * problem.channels, 1 + kGrainPixels / problem.pixels,
               [&](int64_t begin, int64_t end) { run(problem, begin, end); });
}

}  // namespace gansparse::instance_norm
