// SPDX-License-Identifier: Apache-2.0
// One launch of a kernel of sparse_conv2d in the emulator.
// sparse_conv2d_driver ARGUMENTS RESULTS DTYPE SEED
//
// Arguments of tiles (float16, bfloat16): numbers (int64: geometry [14], N, H, W, OH, OW,
// activation, slope_step, limit of shared memory, the pattern (0 block, 1 2:4, 2 vector), whether
// moments are wanted), slope
// (float [1]), input, values, metadata or nothing, places, starts, bias or nothing, residual or
// nothing, slopes or nothing. Results: output, the plan (pictures, rows, columns, positions,
// buffers, bytes; with 128 rows: tiles, period, whether pictures stand close, positions, buffers,
// bytes), and moments (float [N, P, 3, O]; P is 0 where none are wanted). Arguments of lists
// (float32): numbers (int64: geometry [14], N, H, W, OH, OW, activation, slope_step, limit of
// shared memory, pixels of a lane, splits, whether slopes are an array), input, values, offsets,
// starts, rows, bias or nothing, residual or nothing, slopes (float [1] or [O]), gradient of the
// output or nothing. Results: output, or where there is a gradient that of the values; and the plan
// (pictures, rows, columns, bytes).
#include "ops/sparse_conv2d/sparse_conv2d_columns.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_lists.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_warpgroups.cuh"

#include <cstdlib>
#include <cstring>
#include <string>

#include "arguments.h"

using namespace gansparse;
using namespace gansparse::sparse_conv2d;

template <class T, class C>
void launch(const TileArguments& a, uint64_t seed) {
  const TilePlan& t = a.t;
  const int64_t blocks = int64_t{t.tiles_n} * t.tiles_y * t.tiles_x * t.row_blocks;
  emulate<&sparse_conv2d_tiles_kernel<T, C>>(
      {dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(tile_threads(t))),
       static_cast<size_t>(t.shared_bytes), seed},
      a);
}

template <class T>
void launch_columns(const ColumnArguments& k, uint64_t seed) {
  const TilePlan& t = k.a.t;
  const int64_t blocks = int64_t{t.tiles_n} * t.tiles_y * t.tiles_x * t.row_blocks;
  const emulator::Launch all{dim3(static_cast<unsigned>(blocks)),
                             dim3(static_cast<unsigned>(column_threads(t))),
                             static_cast<size_t>(t.shared_bytes), seed};
  k.a.p.g.block == 64 ? emulate<&sparse_conv2d_columns_kernel<T, 64>>(all, k)
                      : emulate<&sparse_conv2d_columns_kernel<T, 32>>(all, k);
}

template <class T>
void launch_warpgroups(const WarpgroupArguments& a, uint64_t seed) {
  const int64_t blocks = a.t.tiles_y * a.t.tiles_x * a.t.row_tiles;
  emulate<&sparse_conv2d_warpgroups_kernel<T>>(
      {dim3(static_cast<unsigned>(blocks)), dim3(kWarpgroupThreads),
       static_cast<size_t>(a.t.shared_bytes), seed},
      a);
}

// Its own allocation, so that AddressSanitizer guards it; all NaN.
float* unwritten(int64_t count) {
  auto* out = static_cast<float*>(std::malloc(static_cast<size_t>(count) * sizeof(float)));
  std::memset(out, 0xff, static_cast<size_t>(count) * sizeof(float));
  return out;
}

template <class T>
void convolve(const char* from, const char* to, uint64_t seed) {
  Arguments arguments(from);
  const int64_t* numbers = arguments.next<int64_t>();
  TileProblem p{};
  std::memcpy(&p.g, numbers, sizeof p.g);
  numbers += kGeometryNumbers;
  p.batch = numbers[0], p.height = numbers[1], p.width = numbers[2];
  p.out_height = numbers[3], p.out_width = numbers[4];
  p.activation = static_cast<TileActivation>(numbers[5]);
  p.slope_step = numbers[6];
  const int64_t limit = numbers[7];
  p.two_of_four = numbers[8] == 1;
  p.columns = numbers[8] == 2;
  p.slope = *arguments.next<float>();
  p.input = arguments.next<T>();
  p.values = arguments.next<T>();
  p.metadata = arguments.next<uint32_t>();
  int64_t places = 0;
  p.places = arguments.next<int16_t>(&places);
  p.steps = places / (p.columns ? kColumnStep : 4);
  p.starts = arguments.next<int32_t>();
  p.bias = arguments.next<float>();
  p.residual = arguments.next<T>();
  p.slopes = arguments.next<float>();

  // Its own allocation, so that AddressSanitizer guards it; all NaN.
  const int64_t count = p.batch * p.out_height * p.out_width * p.g.out_channels;
  T* output = static_cast<T*>(std::malloc(static_cast<size_t>(count) * sizeof(T)));
  std::memset(output, 0xff, static_cast<size_t>(count) * sizeof(T));
  p.output = output;
  p.parts = numbers[9] != 0 ? moment_parts(p) : 0;
  const int64_t moment_count = p.batch * p.parts * 3 * p.g.out_channels;
  p.moments = p.parts > 0 ? unwritten(moment_count) : nullptr;
  Results results(to);
  if (p.g.vector == kWarpgroupVector) {
    const WarpgroupArguments a{p, plan_warpgroups(p, limit)};
    launch_warpgroups<T>(a, seed);
    results.add(output, count);
    const int64_t plan[] = {
        a.t.tiles_y * a.t.tiles_x, a.t.period, a.t.wrap != INT_MAX, a.t.positions, a.t.buffers,
        a.t.shared_bytes};
    results.add(plan, 6);
    results.add(p.moments, moment_count);
    std::free(p.moments);
    std::free(output);
    return;
  }
  const ColumnPlan columns = plan_columns(p, limit);
  const TileArguments a{p, p.columns ? columns.t : plan_tiles(p, limit)};
  if (a.t.shared_bytes > limit && p.parts == 0) {  // as the launch
    std::fprintf(stderr, "%d bytes of shared memory\n", a.t.shared_bytes);
    std::exit(3);
  }
  if (p.columns) {
    launch_columns<T>({a, columns}, seed);
  } else if (p.two_of_four) {
    p.g.vector == 32 ? launch<T, TileConfig<2, true>>(a, seed)
                     : launch<T, TileConfig<4, true>>(a, seed);
  } else {
    p.g.vector == 16 ? launch<T, TileConfig<1, false>>(a, seed)
                     : launch<T, TileConfig<2, false>>(a, seed);
  }
  results.add(output, count);
  const int64_t plan[] = {1 << a.t.log_n, 1 << a.t.log_y, 1 << a.t.log_x,
                          a.t.positions,  a.t.buffers,    a.t.shared_bytes};
  results.add(plan, 6);
  results.add(p.moments, moment_count);
  std::free(p.moments);
  std::free(output);
}

emulator::Launch blocks_of(int64_t blocks, int threads, int64_t shared_bytes, uint64_t seed) {
  return {dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)),
          static_cast<size_t>(shared_bytes), seed};
}

template <bool kVector>
void forward(const ListArguments& a, int64_t tiles, int pixels, uint64_t seed) {
  const auto all = blocks_of(tiles * a.t.row_blocks, kListThreads, a.t.shared_bytes, seed);
  pixels == kManyPixels ? emulate<&sparse_conv2d_lists_kernel<kVector, kManyPixels>>(all, a)
                        : emulate<&sparse_conv2d_lists_kernel<kVector, kFewPixels>>(all, a);
}

void gradient(const ListArguments& a, const float* grad, int splits, float* dvalues,
              uint64_t seed) {
  const int64_t size = a.p.weights * a.p.g.vector;
  float* sums = splits > 1 ? unwritten(splits * size) : dvalues;
  const GradientArguments d{a, grad, sums, splits, static_cast<int>(gradient_groups(a.t))};
  emulate<&sparse_conv2d_gradient_kernel>(
      blocks_of(int64_t{d.groups} * splits * gradient_parts(a.p.g), kGradientThreads,
                a.t.shared_bytes, seed),
      d);
  if (splits == 1) return;
  emulate<&sparse_conv2d_add_kernel>(
      blocks_of((size + kListThreads - 1) / kListThreads, kListThreads, 0, seed), sums, splits,
      size, dvalues);
  std::free(sums);
}

void convolve_lists(const char* from, const char* to, uint64_t seed) {
  Arguments arguments(from);
  const int64_t* numbers = arguments.next<int64_t>();
  Problem p{};
  std::memcpy(&p.g, numbers, sizeof p.g);
  numbers += kGeometryNumbers;
  p.batch = numbers[0], p.height = numbers[1], p.width = numbers[2];
  p.out_height = numbers[3], p.out_width = numbers[4];
  p.activation = static_cast<Activation>(numbers[5]);
  p.slope_step = numbers[6];
  const int64_t limit = numbers[7];
  const int pixels = static_cast<int>(numbers[8]), splits = static_cast<int>(numbers[9]);
  p.input = arguments.next<float>();
  p.values = arguments.next<float>();
  p.offsets = arguments.next<uint16_t>(&p.weights);
  p.starts = arguments.next<int32_t>();
  p.rows = arguments.next<int32_t>(&p.lists);
  int64_t biases = 0;
  p.bias = arguments.next<float>(&biases);
  p.bias_step = biases > p.g.out_channels ? 1 : 0;
  p.residual = arguments.next<float>();
  const float* slope = arguments.next<float>();
  p.slopes = numbers[10] != 0 ? slope : nullptr;
  const float* grad = arguments.next<float>();

  const int64_t count = grad == nullptr ? p.batch * p.g.out_channels * p.out_height * p.out_width
                                        : p.weights * p.g.vector;
  float* output = unwritten(count);
  p.output = output;
  const ListArguments a{p, plan_lists(p, pixels, limit), *slope};
  const int64_t tiles = int64_t{a.t.tiles_n} * a.t.tiles_y * a.t.tiles_x;
  if (grad == nullptr) {
    p.g.vector == 1 ? forward<false>(a, tiles, pixels, seed)
                    : forward<true>(a, tiles, pixels, seed);
  } else {
    gradient(a, grad, splits, output, seed);
  }
  Results results(to);
  results.add(output, count);
  const int64_t plan[] = {1 << a.t.log_n, 1 << a.t.log_y, 1 << a.t.log_x, a.t.shared_bytes};
  results.add(plan, 4);
  std::free(output);
}

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const std::string dtype = argv[3];
  const uint64_t seed = std::strtoull(argv[4], nullptr, 10);
  if (dtype == "float32") convolve_lists(argv[1], argv[2], seed);
  if (dtype == "bfloat16") convolve<BFloat16>(argv[1], argv[2], seed);
  if (dtype == "float16") convolve<Half>(argv[1], argv[2], seed);
  return 0;
}
