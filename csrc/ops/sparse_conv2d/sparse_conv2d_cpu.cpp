// SPDX-License-Identifier: Apache-2.0
// The CPU op: how the pictures are cut into tiles, the sharing among threads, and plain C++.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "common/cpu_features.h"
#include "common/parallel.h"
#include "ops/sparse_conv2d/sparse_conv2d.h"
#include "ops/sparse_conv2d/sparse_conv2d_simd.h"
#include "ops/sparse_conv2d/winograd_conv2d_simd.h"

namespace gansparse::sparse_conv2d {
namespace {

constexpr int64_t kLine = 16;            // floats of a cache line
constexpr int64_t kGrainWork = 500'000;  // multiply-adds worth waking a thread for: about 20 µs

struct Plain {
  struct Reg {
    float lane[4];
  };
  struct Mask {
    int begin, end;
  };
  static constexpr int kWidth = 4;
  static constexpr int kSums = 8;

  template <class F>
  static Reg each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static Reg load(const float* from) {
    return each([=](int i) { return from[i]; });
  }
  static void store(float* to, Reg x) { std::copy_n(x.lane, 4, to); }
  static Reg set(float x) { return {{x, x, x, x}}; }
  static Reg zero() { return set(0); }
  static Reg add(Reg x, Reg y) {
    return each([&](int i) { return x.lane[i] + y.lane[i]; });
  }
  static Reg mul_add(Reg x, Reg y, Reg a) {
    return each([&](int i) { return a.lane[i] + x.lane[i] * y.lane[i]; });
  }
  // Of x and y; y where either is NaN, as x86 has it.
  static Reg max(Reg x, Reg y) {
    return each([&](int i) { return x.lane[i] > y.lane[i] ? x.lane[i] : y.lane[i]; });
  }
  static Reg min(Reg x, Reg y) {
    return each([&](int i) { return x.lane[i] < y.lane[i] ? x.lane[i] : y.lane[i]; });
  }
  static Reg load_pieces(const float* from, const int64_t* at) { return load(from + *at); }
  static void store_pieces(float* to, const int64_t* at, Reg x) { store(to + *at, x); }
  static void in_order(Reg&) {}
  static Mask mask(int begin, int end) { return {begin, end}; }
  static Reg load_masked(const float* from, Mask mask) {
    return each([=](int i) { return i >= mask.begin && i < mask.end ? from[i] : 0.0f; });
  }
  static void transpose_low(Reg* four) { transpose(four); }
  static void transpose(Reg* four) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < i; ++j) std::swap(four[i].lane[j], four[j].lane[i]);
    }
  }
};

RunUnits choose_kernel() {
#ifdef GANSPARSE_WITH_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512:
      return &run_units_avx512;
    case SimdLevel::kAvx2:
      return &run_units_avx2;
    case SimdLevel::kPlain:
      break;
  }
#endif
  return &run_units<Plain>;
}

RunWinograd choose_winograd() {
#ifdef GANSPARSE_WITH_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512:
      return &run_winograd_avx512;
    case SimdLevel::kAvx2:
      return &run_winograd_avx2;
    case SimdLevel::kPlain:
      break;
  }
#endif
  return &run_winograd_units<Plain>;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The 16 patches of a tile lie side by side in the way that takes the fewest tiles; among equals
// in one row, so that most of what is read is read once (256 channels of 64 x 64 pixels: 1 to 14 %
// faster at 90 % on Zen 4 than four by four), else four by four, which has the smallest border.
void choose_lanes(const Problem& p, Plan* plan) {
  constexpr int64_t kWays[][3] = {{1, 1, 16}, {1, 4, 4}, {1, 2, 8}, {2, 1, 8}, {2, 2, 4},
                                  {4, 1, 4},  {1, 8, 2}, {2, 4, 2}, {4, 2, 2}, {8, 1, 2},
                                  {1, 16, 1}, {2, 8, 1}, {4, 4, 1}, {8, 2, 1}, {16, 1, 1}};
  const int64_t grid_height = ceil_div(p.out_height, p.g.upscale);
  const int64_t grid_width = ceil_div(p.out_width, p.g.upscale);
  plan->tiles = 0;
  for (const auto& [n, y, x] : kWays) {
    const int64_t tiles_n = ceil_div(p.batch, n);
    const int64_t tiles_y = ceil_div(grid_height, y * p.g.patch);
    const int64_t tiles_x = ceil_div(grid_width, x * p.g.patch);
    const int64_t tiles = tiles_n * tiles_y * tiles_x;
    if (plan->tiles != 0 && tiles >= plan->tiles) continue;
    plan->lanes_n = n, plan->lanes_y = y, plan->lanes_x = x;
    plan->tiles_n = tiles_n, plan->tiles_y = tiles_y, plan->tiles_x = tiles_x;
    plan->tiles = tiles;
  }
}

Plan make_plan(const Problem& p) {
  const Geometry& g = p.g;
  Plan plan{};
  choose_lanes(p, &plan);
  plan.rows = (g.patch - 1) * g.stride + g.taps_h;
  plan.columns = (g.patch - 1) * g.stride + g.taps_w;
  const int64_t phase_rows = g.patch - 1 + ceil_div(g.taps_h, g.stride);
  const int64_t phase_columns = g.patch - 1 + ceil_div(g.taps_w, g.stride);
  const int64_t phase_floats = phase_rows * phase_columns * kLanes;
  plan.row_floats = phase_columns * kLanes;
  plan.channel_floats = g.stride * g.stride * phase_floats;
  for (int64_t i = 0; i < plan.rows; ++i) {
    plan.row_place[i] = i % g.stride * g.stride * phase_floats + i / g.stride * plan.row_floats;
  }
  for (int64_t j = 0; j < plan.columns; ++j) {
    plan.column_place[j] = j % g.stride * phase_floats + j / g.stride * kLanes;
  }
  plan.region_rows = (plan.lanes_y * g.patch - 1) * g.stride + g.taps_h;
  plan.region_columns = (plan.lanes_x * g.patch - 1) * g.stride + g.taps_w;
  plan.region_pitch = ceil_div(plan.region_columns + 4, kLine) * kLine;
  plan.matrix_rows = g.upscale * g.upscale * ceil_div(g.out_channels, g.vector) * g.vector;
  plan.chunks = ceil_div(plan.matrix_rows, kChunkRows);
  plan.blocks = ceil_div(g.in_channels, g.block);
  const int64_t block_floats = ceil_div(g.block * plan.channel_floats, kLine) * kLine;
  const bool kept = plan.chunks > 1 && plan.blocks * block_floats <= kMostKept;
  plan.block_floats = kept ? block_floats : 0;
  return plan;
}

// ---- Memory that the threads work in
// -------------------------------------------------------------

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Kept from call to call by the thread that calls.
float* arena(int64_t floats) {
  thread_local std::unique_ptr<float[], Free> memory;
  thread_local int64_t size = 0;
  if (floats > size) {
    memory.reset();
    size = 0;
    const size_t bytes = static_cast<size_t>(ceil_div(floats, kLine) * kLine) * sizeof(float);
    memory.reset(static_cast<float*>(std::aligned_alloc(kLine * sizeof(float), bytes)));
    if (memory == nullptr) throw std::bad_alloc();
    size = floats;
  }
  return memory.get();
}

int64_t staged_floats(const Plan& plan) {
  return (kStaged * plan.lanes_n * plan.region_rows + 1) * plan.region_pitch;  // reads go beyond
}

}  // namespace

void run_cpu(const Problem& p) {
  const Plan plan = make_plan(p);
  const RunUnits run = choose_kernel();

  const int64_t patch_floats = p.g.patch * p.g.patch * kLanes;
  const int64_t staged = staged_floats(plan);
  const int64_t scratch = (plan.blocks - 1) * plan.block_floats + kScratchFloats +
                          ceil_div(plan.channel_floats, kLine) * kLine;
  const int64_t sums = std::min(kChunkRows, plan.matrix_rows) * patch_floats;
  const int64_t each = staged + scratch + sums;
  const int64_t work = 1 + p.weights * p.g.vector / plan.chunks * patch_floats;  // of a unit
  float* const memory = arena(each * max_threads());
  std::atomic<int64_t> next{0};
  parallel_for(plan.chunks * plan.tiles, 1 + kGrainWork / work, [&](int64_t begin, int64_t end) {
    float* const own = memory + each * next++;
    run(p, plan, Workspace{own, own + staged, own + staged + scratch}, begin, end);
  });
}

void run_winograd(const Problem& p) {
  const Plan plan = make_plan(p);
  const RunWinograd run = choose_winograd();

  const int64_t staged = staged_floats(plan);
  const int64_t scratch = kWinogradChannels * plan.channel_floats;
  const int64_t rows = std::min(kChunkRows, plan.matrix_rows);
  const int64_t inputs = kPositions * position_step(p.g.in_channels, 2);
  const int64_t outputs = kPositions * position_step(rows, 2);
  const int64_t sums = rows * p.g.patch * p.g.patch * kLanes;
  const int64_t each = staged + scratch + inputs + outputs + sums;
  const int64_t work = 2 * kPositions * kLanes * rows * p.g.in_channels;  // of a unit
  float* const memory = arena(each * max_threads());
  std::atomic<int64_t> next{0};
  // Two tiles at a time, unless threads would have to wait for one another.
  const int64_t threads = max_threads(), pairs = ceil_div(plan.tiles, 2) * plan.chunks;
  const bool even = 2 * ceil_div(pairs, threads) <= ceil_div(plan.tiles * plan.chunks, threads);
  const int64_t together = even || threads == 1 ? 2 : 1;
  const int64_t units = ceil_div(plan.tiles, together) * plan.chunks;
  parallel_for(units, 1 + kGrainWork / (1 + work), [&](int64_t begin, int64_t end) {
    float* const own = memory + each * next++;
    WinogradSpace space{together, own, own + staged, nullptr, nullptr, nullptr};
    space.inputs = space.scratch + scratch;
    space.outputs = space.inputs + inputs;
    space.sums = space.outputs + outputs;
    run(p, plan, space, begin, end);
  });
}

}  // namespace gansparse::sparse_conv2d
