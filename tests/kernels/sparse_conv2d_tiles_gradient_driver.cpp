// SPDX-License-Identifier: Apache-2.0
// The gradient of packed tiles in the emulator.
// sparse_conv2d_tiles_gradient_driver ARGUMENTS RESULTS DTYPE SEED
//
// Arguments: numbers (int64: geometry [14], N, H, W, OH, OW, limit of shared memory, splits),
// input, values, places, starts, gradient of the output. Results: gradient of the values, and the
// plan (row tiles, lists of a group, parts, buffers, bytes).
#include "ops/sparse_conv2d/sparse_conv2d_tiles_gradient.cuh"

#include <cstdlib>
#include <cstring>
#include <string>

#include "arguments.h"

using namespace gansparse;
using namespace gansparse::sparse_conv2d;

// Its own allocation, so that AddressSanitizer guards it; all NaN.
template <class T>
T* unwritten(int64_t count) {
  T* out = static_cast<T*>(std::malloc(static_cast<size_t>(count) * sizeof(T)));
  std::memset(out, 0xff, static_cast<size_t>(count) * sizeof(T));
  return out;
}

emulator::Launch blocks_of(int64_t blocks, int64_t shared_bytes, uint64_t seed) {
  return {dim3(static_cast<unsigned>(blocks)), dim3(kTileGradientThreads),
          static_cast<size_t>(shared_bytes), seed};
}

template <class T>
void differentiate(const char* from, const char* to, uint64_t seed) {
  Arguments arguments(from);
  const int64_t* numbers = arguments.next<int64_t>();
  TileProblem p{};
  std::memcpy(&p.g, numbers, sizeof p.g);
  numbers += kGeometryNumbers;
  p.batch = numbers[0], p.height = numbers[1], p.width = numbers[2];
  p.out_height = numbers[3], p.out_width = numbers[4];
  const int64_t limit = numbers[5];
  p.input = arguments.next<T>();
  p.values = arguments.next<T>();
  int64_t places = 0;
  p.places = arguments.next<int16_t>(&places);
  p.steps = places / 4;
  p.starts = arguments.next<int32_t>();

  TileGradientArguments k{{p, {}}, plan_tile_gradient(p, limit), arguments.next<T>(), nullptr, 1};
  k.a.t = k.d.t;
  k.splits = static_cast<int>(numbers[6]);
  const int64_t size = p.steps * p.g.vector * kStepChannels;
  k.sums = unwritten<float>(k.splits * size);
  T* dvalues = unwritten<T>(size);
  const emulator::Launch all = blocks_of(
      int64_t{k.d.row_groups} * k.d.chunk_groups * k.splits * k.d.parts, k.d.shared_bytes, seed);
  p.g.vector == 16 ? emulate<&sparse_conv2d_tiles_gradient_kernel<T, 1>>(all, k)
                   : emulate<&sparse_conv2d_tiles_gradient_kernel<T, 2>>(all, k);
  emulate<&sparse_conv2d_tiles_add_kernel<T>>(
      blocks_of((size + 4 * kTileGradientThreads - 1) / (4 * kTileGradientThreads), 0, seed),
      k.sums, k.splits, size, static_cast<const T*>(p.values), dvalues);
  Results results(to);
  results.add(dvalues, size);
  const int64_t plan[] = {1 << k.d.log_rows, 1 << k.d.log_chunks, k.d.parts, k.d.buffers,
                          k.d.shared_bytes};
  results.add(plan, 5);
  std::free(k.sums);
  std::free(dvalues);
}

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const uint64_t seed = std::strtoull(argv[4], nullptr, 10);
  if (std::string(argv[3]) == "bfloat16") differentiate<BFloat16>(argv[1], argv[2], seed);
  if (std::string(argv[3]) == "float16") differentiate<Half>(argv[1], argv[2], seed);
  return 0;
}
