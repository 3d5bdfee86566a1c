// SPDX-License-Identifier: Apache-2.0
// One launch of feature_moments' kernel in the emulator.
// feature_moments_driver ARGUMENTS RESULTS DTYPE [broken] SEED
//
// Arguments: shape (int64 [2]: N, F), features, total, second, shift or nothing.
// Results: total, second. Broken: the kernel's barrier is left out.
#include <cstdlib>
#include <string>

#include "arguments.h"
#include "common/cuda_language.cuh"

bool broken = false;
#define __syncthreads() \
  if (!broken) gansparse::emulator::sync_threads({"__syncthreads", __FILE__, __LINE__})
#include "ops/feature_moments/feature_moments_kernels.cuh"

using namespace gansparse;
using namespace gansparse::feature_moments;

template <class T>
void add(const char* from, const char* to, uint64_t seed) {
  Arguments arguments(from);
  const int64_t* shape = arguments.next<int64_t>();
  const int64_t rows = shape[0];
  const int64_t width = shape[1];
  const T* features = arguments.next<T>();
  double* total = arguments.next<double>();
  double* second = arguments.next<double>();
  const double* shift = arguments.next<double>();

  const int64_t strips = (width + Config::kTile - 1) / Config::kTile;
  const unsigned tiles = static_cast<unsigned>(strips * (strips + 1) / 2);
  emulate<&feature_moments_kernel<T>>({dim3(tiles), dim3(Config::kThreads), 0, seed}, features,
                                      shift, total, second, rows, width);

  Results results(to);
  results.add(total, width);
  results.add(second, width * width);
}

int main(int argc, char** argv) {
  if (argc < 5 || argc > 6) return 2;
  const std::string dtype = argv[3];
  const uint64_t seed = std::strtoull(argv[argc - 1], nullptr, 10);
  broken = argc == 6 && std::string(argv[4]) == "broken";
  if (dtype == "float32") add<float>(argv[1], argv[2], seed);
  if (dtype == "float64") add<double>(argv[1], argv[2], seed);
  if (dtype == "float16") add<Half>(argv[1], argv[2], seed);
  if (dtype == "bfloat16") add<BFloat16>(argv[1], argv[2], seed);
  return 0;
}
