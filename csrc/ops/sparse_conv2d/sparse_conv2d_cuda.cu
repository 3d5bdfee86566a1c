// SPDX-License-Identifier: Apache-2.0
// The launches of sparse_conv2d.
#include "common/launch.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_columns.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_kernels.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_lists.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_tiles_gradient.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_warpgroups.h"

namespace gansparse::sparse_conv2d {
namespace {

constexpr const char* kOp = "sparse_conv2d";

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), kOp, "cudaDeviceGetAttribute");
  return value;
}

// Refuses what this device has no room for; else allows the kernel all shared memory there is: the
// allowance is the function's, not the launch's, and a launch by another thread must not lower it.
template <class Kernel>
unsigned admit(Kernel* kernel, int64_t blocks, int64_t shared_bytes, int64_t limit,
               const char* remedy = "use torch's dense convolution") {
  if (shared_bytes > limit || blocks > INT32_MAX) {
    throw DeviceError("sparse_conv2d: this layer needs " + std::to_string(shared_bytes) +
                      " bytes of shared memory and " + std::to_string(blocks) +
                      " blocks; this device has " + std::to_string(limit) + " and 2^31: " + remedy);
  }
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(limit)),
             kOp, "cudaFuncSetAttribute");
  return static_cast<unsigned>(blocks);
}

// ---- Tiles for tensor cores ---------------------------------------------------------------------

template <class T, class C>
void launch(const TileProblem& problem, int device, cudaStream_t stream) {
  const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const TileArguments arguments{problem, plan_tiles(problem, limit)};
  const TilePlan& plan = arguments.t;
  const int64_t blocks = int64_t{plan.tiles_n} * plan.tiles_y * plan.tiles_x * plan.row_blocks;
  const auto kernel = &sparse_conv2d_tiles_kernel<T, C>;
  const unsigned grid = admit(kernel, blocks, plan.shared_bytes, limit);
  launch_kernel(kOp, kernel, grid, tile_threads(plan), plan.shared_bytes, stream, arguments);
}

template <class T, int kChannels>
void launch_columns(const TileProblem& problem, int device, cudaStream_t stream) {
  const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const ColumnPlan plan = plan_columns(problem, limit);
  const TilePlan& t = plan.t;
  const int64_t blocks = int64_t{t.tiles_n} * t.tiles_y * t.tiles_x * t.row_blocks;
  const auto kernel = &sparse_conv2d_columns_kernel<T, kChannels>;
  const char* remedy =
      kChannels == 64 ? "pack the weight with list_channels=32" : "use torch's dense convolution";
  const unsigned grid = admit(kernel, blocks, t.shared_bytes, limit, remedy);
  launch_kernel(kOp, kernel, grid, column_threads(t), t.shared_bytes, stream,
                ColumnArguments{{problem, t}, plan});
}

template <class T>
void launch_typed(const TileProblem& p, int device, cudaStream_t stream) {
  if (p.columns) {
    return p.g.block == 64 ? launch_columns<T, 64>(p, device, stream)
                           : launch_columns<T, 32>(p, device, stream);
  }
  if (p.two_of_four) {
    return p.g.vector == 32 ? launch<T, TileConfig<2, true>>(p, device, stream)
                            : launch<T, TileConfig<4, true>>(p, device, stream);
  }
  return p.g.vector == 16 ? launch<T, TileConfig<1, false>>(p, device, stream)
                          : launch<T, TileConfig<2, false>>(p, device, stream);
}

template <class T, int kTiles>
void launch_gradient(const TileProblem& p, const void* grad, void* dvalues, int device,
                     cudaStream_t stream) {
  const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const int64_t processors = attribute(cudaDevAttrMultiProcessorCount, device);
  TileGradientArguments k{{p, {}}, plan_tile_gradient(p, limit), grad, nullptr, 1};
  k.a.t = k.d.t;
  const int64_t groups = int64_t{k.d.row_groups} * k.d.chunk_groups;
  const int64_t tiles = int64_t{k.a.t.tiles_n} * k.a.t.tiles_y * k.a.t.tiles_x;
  const int64_t splits = std::clamp<int64_t>(processors / groups, 1, tiles);
  const int64_t size = p.steps * kTiles * 512;
  const auto kernel = &sparse_conv2d_tiles_gradient_kernel<T, kTiles>;
  const unsigned grid = admit(kernel, groups * splits * k.d.parts, k.d.shared_bytes, limit);
  const StreamMemory memory(static_cast<size_t>(splits * size) * sizeof(float), stream, kOp);
  k.sums = memory.at<float>(0);
  k.splits = static_cast<int>(splits);
  launch_kernel(kOp, kernel, grid, kTileGradientThreads, k.d.shared_bytes, stream, k);
  constexpr int64_t kEach = int64_t{4} * kTileGradientThreads;
  const auto add = static_cast<unsigned>((size + kEach - 1) / kEach);
  launch_kernel(kOp, sparse_conv2d_tiles_add_kernel<T>, add, kTileGradientThreads, 0, stream,
                k.sums, k.splits, size, static_cast<const T*>(p.values), static_cast<T*>(dvalues));
}

template <class T>
void launch_gradient_typed(const TileProblem& p, const void* grad, void* dvalues, int device,
                           cudaStream_t stream) {
  return p.g.vector == 16 ? launch_gradient<T, 1>(p, grad, dvalues, device, stream)
                          : launch_gradient<T, 2>(p, grad, dvalues, device, stream);
}

// ---- Lists, in float32 --------------------------------------------------------------------------

int64_t list_tiles(const ListPlan& t) { return int64_t{t.tiles_n} * t.tiles_y * t.tiles_x; }

template <bool kVector, int kPixels>
void launch_lists(const ListArguments& a, int64_t limit, cudaStream_t stream) {
  const auto kernel = &sparse_conv2d_lists_kernel<kVector, kPixels>;
  const unsigned grid = admit(kernel, list_tiles(a.t) * a.t.row_blocks, a.t.shared_bytes, limit);
  launch_kernel(kOp, kernel, grid, kListThreads, a.t.shared_bytes, stream, a);
}

}  // namespace

void run_cuda(const Problem& p, float slope, int device, uintptr_t stream_handle) {
  const DeviceGuard guard(device, kOp);
  const cudaStream_t stream = stream_of(stream_handle);
  const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const int processors = attribute(cudaDevAttrMultiProcessorCount, device);
  const ListArguments many{p, plan_lists(p, kManyPixels, limit), slope};
  const ListArguments few{p, plan_lists(p, kFewPixels, limit), slope};
  // Few pixels a lane where the others would leave multiprocessors or half of their lanes idle.
  const int64_t tiles = list_tiles(many.t);
  if (tiles * many.t.row_blocks < processors || 2 * tiles > list_tiles(few.t) ||
      many.t.shared_bytes > limit) {
    return p.g.vector == 1 ? launch_lists<false, kFewPixels>(few, limit, stream)
                           : launch_lists<true, kFewPixels>(few, limit, stream);
  }
  return p.g.vector == 1 ? launch_lists<false, kManyPixels>(many, limit, stream)
                         : launch_lists<true, kManyPixels>(many, limit, stream);
}

void run_gradient_cuda(const Problem& p, const float* grad, float* dvalues, int device,
                       uintptr_t stream_handle) {
  const DeviceGuard guard(device, kOp);
  const cudaStream_t stream = stream_of(stream_handle);
  const int limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const int64_t processors = attribute(cudaDevAttrMultiProcessorCount, device);
  GradientArguments d{{p, plan_lists(p, kManyPixels, limit), 0.0f}, grad, dvalues, 1, 0};
  const int64_t groups = gradient_groups(d.a.t), size = p.weights * p.g.vector;
  const int64_t splits = std::clamp<int64_t>(kGradientBlocksBeside * processors / groups, 1,
                                             std::min<int64_t>(list_tiles(d.a.t), kMostSplits));
  const unsigned grid = admit(&sparse_conv2d_gradient_kernel, groups * splits * gradient_parts(p.g),
                              d.a.t.shared_bytes, limit);
  d.groups = static_cast<int>(groups), d.splits = static_cast<int>(splits);
  const StreamMemory memory(static_cast<size_t>(splits > 1 ? splits * size : 1) * sizeof(float),
                            stream, kOp);
  if (splits > 1) d.sums = memory.at<float>(0);
  launch_kernel(kOp, sparse_conv2d_gradient_kernel, grid, kGradientThreads, d.a.t.shared_bytes,
                stream, d);
  if (splits == 1) return;
  const auto add = static_cast<unsigned>((size + kListThreads - 1) / kListThreads);
  launch_kernel(kOp, sparse_conv2d_add_kernel, add, kListThreads, 0, stream, d.sums, d.splits, size,
                dvalues);
}

void run_cuda(const TileProblem& problem, TileType type, int device, uintptr_t stream) {
  const DeviceGuard guard(device, kOp);
  if (problem.g.vector == kWarpgroupVector) {
#ifdef GANSPARSE_WITH_SM90A
    return run_warpgroups_cuda(problem, type, device, stream);
#else
    throw DeviceError(kNoWarpgroups);
#endif
  }
  switch (type) {
    case TileType::kFloat16:
      return launch_typed<Half>(problem, device, stream_of(stream));
    case TileType::kBFloat16:
      return launch_typed<BFloat16>(problem, device, stream_of(stream));
  }
}

void run_gradient_cuda(const TileProblem& problem, TileType type, const void* grad, void* dvalues,
                       int device, uintptr_t stream_handle) {
  const DeviceGuard guard(device, kOp);
  const cudaStream_t stream = stream_of(stream_handle);
  switch (type) {
    case TileType::kFloat16:
      return launch_gradient_typed<Half>(problem, grad, dvalues, device, stream);
    case TileType::kBFloat16:
      return launch_gradient_typed<BFloat16>(problem, grad, dvalues, device, stream);
  }
}

}  // namespace gansparse::sparse_conv2d
