// SPDX-License-Identifier: Apache-2.0
// The launch of feature_moments.
#include "common/launch.cuh"
#include "ops/feature_moments/feature_moments_kernels.cuh"

namespace gansparse::feature_moments {
namespace {

template <class T>
void launch(const Problem& p, cudaStream_t stream) {
  const int64_t strips = (p.width + Config::kTile - 1) / Config::kTile;
  const int64_t tiles = strips * (strips + 1) / 2;  // F = 4 million, 140 TB of `second`, is 2^31
  // Room for all of Config::kBlocks at a time, rather than for the first cache.
  check_cuda(cudaFuncSetAttribute(feature_moments_kernel<T>,
                                  cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared),
             "feature_moments", "cudaFuncSetAttribute");
  launch_kernel("feature_moments", feature_moments_kernel<T>, static_cast<unsigned>(tiles),
                Config::kThreads, 0, stream, static_cast<const T*>(p.features), p.shift, p.total,
                p.second, p.rows, p.width);
}

}  // namespace

void add_cuda(const Problem& problem, int device, uintptr_t stream) {
  const DeviceGuard guard(device, "feature_moments");
  switch (problem.type) {
    case FeatureType::kFloat16:
      return launch<Half>(problem, stream_of(stream));
    case FeatureType::kBFloat16:
      return launch<BFloat16>(problem, stream_of(stream));
    case FeatureType::kFloat32:
      return launch<float>(problem, stream_of(stream));
    case FeatureType::kFloat64:
      return launch<double>(problem, stream_of(stream));
  }
}

}  // namespace gansparse::feature_moments
