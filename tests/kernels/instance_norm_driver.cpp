// SPDX-License-Identifier: Apache-2.0
// The kernels of instance_norm in the emulator.
// instance_norm_driver ARGUMENTS RESULTS DTYPE SEED
//
// Arguments: numbers (int64: N, H · W, C, activation, slope_step, blocks wanted, parts of moments),
// eps and slope (float), input, weight or nothing, bias or nothing, residual or nothing, slopes or
// nothing, moments or nothing. Results: output, and the plan (rounds, tiles, slabs, parts that the
// last kernel joins).
#include "ops/instance_norm/instance_norm_kernels.cuh"

#include <cstdlib>
#include <cstring>
#include <string>

#include "arguments.h"

using namespace gansparse;
using instance_norm::Activation;
using instance_norm::kThreads;
using instance_norm::Problem;

// Its own allocation, so that AddressSanitizer guards it; all NaN.
template <class T>
T* unwritten(int64_t count) {
  T* out = static_cast<T*>(std::malloc(static_cast<size_t>(count) * sizeof(T)));
  std::memset(out, 0xff, static_cast<size_t>(count) * sizeof(T));
  return out;
}

template <class T>
void norm(const char* from, const char* to, uint64_t seed) {
  Arguments arguments(from);
  const int64_t* numbers = arguments.next<int64_t>();
  Problem p{};
  p.batch = numbers[0], p.pixels = numbers[1], p.channels = numbers[2];
  p.activation = static_cast<Activation>(numbers[3]);
  p.slope_step = numbers[4];
  const float* scalars = arguments.next<float>();
  p.eps = scalars[0], p.slope = scalars[1];
  p.input = arguments.next<T>();
  p.weight = arguments.next<float>();
  p.bias = arguments.next<float>();
  p.residual = arguments.next<T>();
  p.slopes = arguments.next<float>();
  p.moments = arguments.next<float>();
  p.parts = numbers[6];
  const int64_t count = p.batch * p.pixels * p.channels;
  T* output = unwritten<T>(count);
  p.output = output;
  instance_norm::Arguments a{p, instance_norm::plan_tiles(p, numbers[5]), p.moments,
                             static_cast<int>(p.parts)};
  const auto blocks = static_cast<unsigned>(p.batch * a.plan.tiles * a.plan.slabs);
  const int64_t each = (p.parts + instance_norm::kMostTiles - 1) / instance_norm::kMostTiles;
  float* partial = nullptr;
  if (p.parts == 0 || each > 1) {
    a.parts = p.parts == 0 ? a.plan.tiles : static_cast<int>((p.parts + each - 1) / each);
    const int64_t sums = p.batch * a.parts * p.channels;
    a.partial = partial = unwritten<float>(3 * sums);
    const auto joins = static_cast<unsigned>((sums + kThreads - 1) / kThreads);
    const emulator::Launch launch{dim3(p.parts == 0 ? blocks : joins), dim3(kThreads), 0, seed};
    p.parts == 0 ? emulate<&instance_norm::instance_norm_sums_kernel<T>>(launch, a, partial)
                 : emulate<&instance_norm::instance_norm_join_kernel>(launch, a, each, partial);
  }
  emulate<&instance_norm::instance_norm_apply_kernel<T>>({dim3(blocks), dim3(kThreads), 0, seed},
                                                         a);
  Results results(to);
  results.add(output, count);
  const int64_t plan[] = {a.plan.rounds, a.plan.tiles, a.plan.slabs, a.parts};
  results.add(plan, 4);
  std::free(partial);
  std::free(output);
}

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const uint64_t seed = std::strtoull(argv[4], nullptr, 10);
  if (std::string(argv[3]) == "bfloat16") norm<BFloat16>(argv[1], argv[2], seed);
  if (std::string(argv[3]) == "float16") norm<Half>(argv[1], argv[2], seed);
  return 0;
}
