// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of sparse_conv2d in float32. Contract, plan and cost: sparse_conv2d_lists.h.
//
// Version 1: shared memory is the limit; a warp has four rows, each lane every 32nd pixel.
#pragma once

#include "common/reduce.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_kernels.cuh"
#include "ops/sparse_conv2d/sparse_conv2d_lists.h"

namespace gansparse::sparse_conv2d {

struct ListArguments {
  Problem p;
  ListPlan t;
  float slope;  // where p.slopes is null
};

// A tile of the output grid, and a pixel in it.
struct GridPlace {
  int n, y, x;
};

__device__ __forceinline__ GridPlace tile_of(const ListPlan& t, int tile) {
  return {tile / t.tiles_x / t.tiles_y << t.log_n, tile / t.tiles_x % t.tiles_y << t.log_y,
          tile % t.tiles_x << t.log_x};
}

__device__ __forceinline__ GridPlace pixel_of(const ListPlan& t, int pixel) {
  return {pixel >> (t.log_x + t.log_y), pixel >> t.log_x & ((1 << t.log_y) - 1),
          pixel & ((1 << t.log_x) - 1)};
}

// ---- Input --------------------------------------------------------------------------------------

// What lies at a position of a buffer's channel, whatever the tile: picture, and row and column
// from the first that the tile needs.
__device__ __forceinline__ GridPlace position_place(const ListArguments& a, int position) {
  const ListPlan& t = a.t;
  const int stride = static_cast<int>(a.p.g.stride);
  const int phase = position % t.picture / t.phase;
  const int in_phase = position % t.phase;
  return {position / t.picture, in_phase / t.pitch * stride + phase / stride,
          in_phase % t.pitch * stride + phase % stride};
}

// Where channel 0 has it, or −1: zero.
__device__ __forceinline__ int list_source(const ListArguments& a, const GridPlace& tile,
                                           const GridPlace& place) {
  const Geometry& g = a.p.g;
  const int stride = static_cast<int>(g.stride);
  const int height = static_cast<int>(a.p.height), width = static_cast<int>(a.p.width);
  const int n = tile.n + place.n;
  const int row = padded(tile.y * stride + place.y - static_cast<int>(g.pad_h), height, g.padding);
  const int column =
      padded(tile.x * stride + place.x - static_cast<int>(g.pad_w), width, g.padding);
  if (n >= static_cast<int>(a.p.batch) || row < 0 || column < 0) return -1;
  return (n * static_cast<int>(g.in_channels) * height + row) * width + column;
}

// Makes zero what is outside of the picture, in so many buffers: no copy goes there.
__device__ __forceinline__ void fill_outside(const ListArguments& a, const int32_t* source,
                                             float* buffer, int buffers) {
  const int channels = buffers * static_cast<int>(a.p.g.block);
  for (int i = static_cast<int>(threadIdx.x); i < a.t.channel; i += static_cast<int>(blockDim.x)) {
    if (source[i] >= 0) continue;
    for (int c = 0; c < channels; ++c) buffer[c * a.t.channel + i] = 0.0f;
  }
}

// Asks for a block of channels. Every thread looks only at sources that it has written itself.
__device__ __forceinline__ void request_block(const ListArguments& a, const int32_t* source,
                                              int block, float* buffer) {
  const int channels = static_cast<int>(a.p.g.in_channels);
  const int size = static_cast<int>(a.p.g.block);
  const int64_t plane = a.p.height * a.p.width;
  const int there = min(size, channels - block * size);
  const float* from = a.p.input + block * size * plane;
  for (int i = static_cast<int>(threadIdx.x); i < a.t.channel; i += static_cast<int>(blockDim.x)) {
    if (source[i] < 0) continue;
    const float* pixel = from + source[i];
    float* to = buffer + i;
#pragma unroll 4
    for (int c = 0; c < there; ++c, pixel += plane, to += a.t.channel) copy_async_word(to, pixel);
  }
}

// A lane's pixels: the bytes from the start of shared memory to what tap (0, 0) of each finds in a
// buffer's first channel. A weight's place is added to each, and nothing else: so they are numbers
// of which the compiler knows nothing, or it would put the sums together otherwise, of more parts.
template <int kPixels>
struct LanePixels {
  int bytes[kPixels];

  __device__ __forceinline__ void set(const ListPlan& t, const void* buffer) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const GridPlace at = pixel_of(t, i * 32 + static_cast<int>(threadIdx.x) % 32);
      bytes[i] = 4 * (at.n * t.picture + at.y * t.pitch + at.x);
    }
    move(static_cast<int>(static_cast<const char*>(buffer) -
                          static_cast<const char*>(dynamic_shared())));
  }
  // To another buffer.
  __device__ __forceinline__ void move(int step) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      bytes[i] += step;
#ifdef __CUDA_ARCH__
      asm("" : "+r"(bytes[i]));
#endif
    }
  }
  __device__ __forceinline__ float input(int i, int place) const {
    const char* shared = static_cast<const char*>(dynamic_shared());
    return *reinterpret_cast<const float*>(shared + (place + bytes[i]));
  }
};

// ---- Weights ------------------------------------------------------------------------------------

// From the number of a vector in the CPU's scratch to bytes in a buffer.
__device__ __forceinline__ void fill_table(const ListArguments& a, int32_t* table) {
  const ListPlan& t = a.t;
  for (int i = static_cast<int>(threadIdx.x); i < t.table; i += static_cast<int>(blockDim.x)) {
    const int in_channel = i % t.patch_channel;
    const int in_phase = in_channel % t.patch_phase;
    const int row = in_phase / t.patch_columns;
    // Rows and columns that no tap of pixel (0, 0) meets have no place.
    const int place =
        in_channel / t.patch_phase * t.phase + row * t.pitch + in_phase % t.patch_columns;
    const bool met = row * static_cast<int>(a.p.g.stride) < static_cast<int>(a.p.g.taps_h) &&
                     in_phase % t.patch_columns * static_cast<int>(a.p.g.stride) <
                         static_cast<int>(a.p.g.taps_w);
    table[i] = 4 * (i / t.patch_channel * t.channel + (met ? place : 0));
  }
}

__device__ __forceinline__ int look_up(const ListPlan& t, const int32_t* table, uint16_t offset) {
  return table[min(static_cast<int>(offset) / kLanes, t.table - 1)];
}

// The lists of one block of channels and one chunk of rows.
struct ListRange {
  int first, count;
};

__device__ __forceinline__ ListRange lists_of(const ListArguments& a, int vector, int chunk,
                                              int block) {
  const int in_chunk = static_cast<int>(kChunkRows) / vector;
  const int count = min(in_chunk, a.t.matrix_rows / vector - chunk * in_chunk);
  return {chunk * in_chunk * a.t.blocks + block * count, count};
}

// Which list each of the block's rows (V > 1: groups of rows) has for a block of channels.
__device__ __forceinline__ void find_lists(const ListArguments& a, int vector, int first_row,
                                           int block, int32_t* found) {
  const ListRange lists = lists_of(a, vector, first_row / static_cast<int>(kChunkRows), block);
  for (int i = static_cast<int>(threadIdx.x); i < lists.count; i += kListThreads) {
    const int row = a.p.rows[lists.first + i] - first_row;
    if (row < kListRows && row > -vector) found[max(row, 0) / vector] = lists.first + i;
  }
}

// The weights [begin, end) of a list, or none.
struct WeightRange {
  int begin, end;
};

__device__ __forceinline__ WeightRange weights_of(const Problem& p, int list) {
  if (list < 0) return {0, 0};
  const int all = static_cast<int>(p.weights);
  return {min(max(p.starts[list], 0), all), min(max(p.starts[list + 1], 0), all)};
}

// A lane's weight of a batch.
template <bool kVector>
struct Fetched {
  static constexpr int kValues = kVector ? kWarpRows : 1;
  Vec<float, kValues> values{};
  uint16_t offset = 0;

  // `column`: which of the V values is the first.
  __device__ __forceinline__ void fetch(const Problem& p, int k, int end, int column) {
    k += static_cast<int>(threadIdx.x) % 32;
    if (k >= end) return;
    values = load<kValues>(p.values + (kVector ? k * p.g.vector + column : k));
    offset = p.offsets[k];
  }
};

// sums += one weight (V > 1: four, of a row each) x the lane's pixels.
template <int kValues, int kPixels>
__device__ __forceinline__ void multiply_weight(const LanePixels<kPixels>& pixels, int place,
                                                const float* weights, float (*sums)[kPixels]) {
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const float x = pixels.input(i, place);
#pragma unroll
    for (int r = 0; r < kValues; ++r) sums[r][i] += weights[r] * x;
  }
}

// ---- End of the layer ---------------------------------------------------------------------------

// What a matrix row is: channel o, and where its phase lies among the output's pixels.
struct RowPlace {
  int o, dy, dx;
};

__device__ __forceinline__ RowPlace row_place(const Geometry& g, int row) {
  const int upscale = static_cast<int>(g.upscale), vector = static_cast<int>(g.vector);
  const int tile = row / vector;
  const int phase = tile % (upscale * upscale);
  return {tile / (upscale * upscale) * vector + row % vector, phase / upscale, phase % upscale};
}

// Where the pixel of a row lies in [N, O, OH, OW], or −1: nowhere.
__device__ __forceinline__ int output_place(const ListArguments& a, const GridPlace& tile,
                                            const RowPlace& row, int pixel) {
  const GridPlace at = pixel_of(a.t, pixel);
  const int upscale = static_cast<int>(a.p.g.upscale);
  const int height = static_cast<int>(a.p.out_height), width = static_cast<int>(a.p.out_width);
  const int n = tile.n + at.n;
  const int y = (tile.y + at.y) * upscale + row.dy;
  const int x = (tile.x + at.x) * upscale + row.dx;
  if (n >= static_cast<int>(a.p.batch) || y >= height || x >= width) return -1;
  return ((n * static_cast<int>(a.p.g.out_channels) + row.o) * height + y) * width + x;
}

// ---- Forward ------------------------------------------------------------------------------------

template <bool kVector, int kPixels>
__global__ void __launch_bounds__(kListThreads, 2)
    sparse_conv2d_lists_kernel(const GANSPARSE_GRID_CONSTANT ListArguments a) {
  const Problem& p = a.p;
  const ListPlan& t = a.t;
  constexpr int kValues = Fetched<kVector>::kValues;
  constexpr int kLists = kWarpRows / kValues;  // that a warp walks for a block of channels
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int vector = kVector ? static_cast<int>(p.g.vector) : 1;
  // Shared memory: first what is read 16 bytes at a time.
  constexpr int kWarpFloats = (kWarpRows + 1) * kBatch;
  float* fetched = static_cast<float*>(dynamic_shared()) + warp * kWarpFloats;  // [kBatch][kValues]
  auto* places = reinterpret_cast<int32_t*>(fetched + kWarpRows * kBatch);      // [kBatch], bytes
  float* buffers = static_cast<float*>(dynamic_shared()) + kListThreads / 32 * kWarpFloats;
  const int buffer_floats = static_cast<int>(p.g.block) * t.channel;
  auto* source = reinterpret_cast<int32_t*>(buffers + 2 * buffer_floats);  // [channel]
  int32_t* table = source + t.channel;                                     // [table]
  int32_t* found = table + t.table;                                        // [2][kListRows]

  // ---- Which rows and pixels: neighbouring blocks share their pixels ----
  const int block = static_cast<int>(blockIdx.x);
  const int first_row = block % t.row_blocks * kListRows;
  const GridPlace tile = tile_of(t, block / t.row_blocks);
  LanePixels<kPixels> pixels;
  pixels.set(t, buffers);
  for (int i = thread; i < t.channel; i += kListThreads) {
    source[i] = list_source(a, tile, position_place(a, i));
  }
  fill_outside(a, source, buffers, 2);
  fill_table(a, table);
  if (thread < 2 * kListRows) found[thread] = -1;  // rows past the last have no lists
  __syncthreads();                                 // before find_lists writes

  const auto prepare = [&](int b) {
    request_block(a, source, b, buffers + b % 2 * buffer_floats);
    find_lists(a, vector, first_row, b, found + b % 2 * kListRows);
    commit_copies();
  };
  prepare(0);
  float sums[kWarpRows][kPixels] = {};

  // ---- Input channels, a block at a time ----
#pragma unroll 1
  for (int b = 0; b < t.blocks; ++b) {
    wait_copies<0>();
    __syncthreads();  // this block's input and lists are there, and all have read the last one's
    if (b + 1 < t.blocks) prepare(b + 1);

    const int32_t* mine = found + b % 2 * kListRows;
    const int column = kVector ? (first_row + warp * kWarpRows) % vector : 0;
    WeightRange following = weights_of(p, mine[warp * kWarpRows / vector]);
    Fetched<kVector> next;
    next.fetch(p, following.begin, following.end, column);
#pragma unroll
    for (int l = 0; l < kLists; ++l) {
      const WeightRange range = following;
      following = weights_of(p, l + 1 < kLists ? mine[warp * kWarpRows + l + 1] : -1);
      if (range.begin == range.end) next.fetch(p, following.begin, following.end, column);
#pragma unroll 1
      for (int k = range.begin; k < range.end; k += kBatch) {
        if (k + lane < range.end) {
          store<kValues>(fetched + lane * kValues, next.values);
          places[lane] = look_up(t, table, next.offset);
        }
        const bool last = k + kBatch >= range.end;  // then come the next list's
        next.fetch(p, last ? following.begin : k + kBatch, last ? following.end : range.end,
                   column);
        __syncwarp();  // all lanes' weights are there
        const int count = min(kBatch, range.end - k);
        int i = 0;
        for (; i + 4 <= count; i += 4) {
          const auto four = load<4>(places + i);
          if constexpr (kVector) {
#pragma unroll
            for (int u = 0; u < 4; ++u) {
              const auto weights = load<4>(fetched + 4 * (i + u));
              multiply_weight<4>(pixels, four.item[u], weights.item, sums);
            }
          } else {
            const auto weights = load<4>(fetched + i);
#pragma unroll
            for (int u = 0; u < 4; ++u) {
              multiply_weight<1>(pixels, four.item[u], weights.item + u, sums + l);
            }
          }
        }
#pragma unroll 1
        for (; i < count; ++i) {
          const auto weights = load<kValues>(fetched + i * kValues);
          multiply_weight<kValues>(pixels, places[i], weights.item, sums + l);
        }
        __syncwarp();  // all have read before the next weights come
      }
    }
    pixels.move(b % 2 == 0 ? 4 * buffer_floats : -4 * buffer_floats);
  }

  // ---- Bias, residual, activation ----
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = first_row + warp * kWarpRows + r;
    const RowPlace place = row_place(p.g, row);
    if (row >= t.matrix_rows || place.o >= p.g.out_channels) continue;
    const int upscale = static_cast<int>(p.g.upscale);
    const int of_phase = (place.o * upscale + place.dy) * upscale + place.dx;
    const float bias = p.bias ? p.bias[p.bias_step ? of_phase : place.o] : 0.0f;
    const float slope = p.slopes ? p.slopes[place.o * p.slope_step] : a.slope;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int at = output_place(a, tile, place, i * 32 + lane);
      if (at < 0) continue;
      float z = sums[r][i] + bias;
      if (p.residual) z += p.residual[at];
      if (p.activation == Activation::kRelu) z = z < 0 ? 0.0f : z;  // NaN passes
      if (p.activation == Activation::kLeaky) z = z >= 0 ? z : z * slope;
      p.output[at] = z;
    }
  }
}

// ---- Gradient of the weights --------------------------------------------------------------------

struct GradientArguments {
  ListArguments a;     // planned for kManyPixels
  const float* grad;   // [N, O, OH, OW]
  float* sums;         // [splits, K, V]: dvalues itself where splits is 1
  int splits, groups;  // blocks: [parts][splits][groups]
};

__global__ void __launch_bounds__(kGradientThreads, 1)
    sparse_conv2d_gradient_kernel(const GANSPARSE_GRID_CONSTANT GradientArguments d) {
  const ListArguments& a = d.a;
  const Problem& p = a.p;
  const ListPlan& t = a.t;
  constexpr int kPixels = kManyPixels, kWeights = kGradientWeights;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int vector = static_cast<int>(p.g.vector);
  const int buffer_floats = static_cast<int>(p.g.block) * t.channel;
  float* buffers = static_cast<float*>(dynamic_shared());
  auto* source = reinterpret_cast<int32_t*>(buffers + 2 * buffer_floats);  // [channel]
  int32_t* at_position = source + t.channel;                               // [channel], packed
  int32_t* table = at_position + t.channel;                                // [table]

  // ---- Which lists: neighbouring blocks share their input ----
  const int group = static_cast<int>(blockIdx.x) % d.groups;
  const int split = static_cast<int>(blockIdx.x) / d.groups % d.splits;
  const int part = static_cast<int>(blockIdx.x) / d.groups / d.splits;
  constexpr int kWhole = static_cast<int>(kChunkRows) / kGradientWarps;  // groups of a whole chunk
  const int whole_chunks = t.matrix_rows / static_cast<int>(kChunkRows);
  const bool in_whole = group < whole_chunks * t.blocks * kWhole;
  const int rest = group - whole_chunks * t.blocks * kWhole;
  const int rest_groups =
      (t.matrix_rows % static_cast<int>(kChunkRows) + kGradientWarps - 1) / kGradientWarps;
  const int chunk = in_whole ? group / kWhole / t.blocks : whole_chunks;
  const int block = in_whole ? group / kWhole % t.blocks : rest / rest_groups;
  const int in_lists = (in_whole ? group % kWhole : rest % rest_groups) * kGradientWarps;
  const ListRange lists = lists_of(a, vector, chunk, block);
  bool needed = false;  // has any warp's list so many weights?
  for (int w = 0; w < kGradientWarps && in_lists + w < lists.count * vector; ++w) {
    const WeightRange range = weights_of(p, lists.first + (in_lists + w) / vector);
    needed = needed || range.end - range.begin > part * kWeights;
  }
  if (!needed) return;  // all threads of the block, or none

  fill_table(a, table);
  for (int i = thread; i < t.channel; i += kGradientThreads) {
    const GridPlace at = position_place(a, i);
    at_position[i] = at.n << 22 | at.y << 11 | at.x;
  }
  __syncthreads();  // the table is whole
  const bool has_list = in_lists + warp < lists.count * vector;
  const int list = lists.first + (has_list ? (in_lists + warp) / vector : 0);
  const int column = (in_lists + warp) % vector;
  const int row = max(0, min(p.rows[list], t.matrix_rows - vector)) + column;
  const RowPlace place = row_place(p.g, row);
  const WeightRange range = weights_of(p, list);
  const int begin = range.begin + part * kWeights;
  const int count = has_list ? min(kWeights, range.end - begin) : 0;
  // In shared memory: in registers all sums of a weight's and a pixel's place would want to be,
  // too.
  int32_t* places = table + t.table + warp * kWeights;  // [kWeights], bytes
  if (lane < kWeights) places[lane] = lane < count ? look_up(t, table, p.offsets[begin + lane]) : 0;
  LanePixels<kPixels> pixels;
  pixels.set(t, buffers);

  // ---- Tiles of the grid, every `splits`th ----
  const int tiles = t.tiles_n * t.tiles_y * t.tiles_x;
  const auto prepare = [&](int number, float* buffer) {
    const GridPlace tile = tile_of(t, number);
    for (int i = thread; i < t.channel; i += kGradientThreads) {
      const int at = at_position[i];
      source[i] = list_source(a, tile, {at >> 22, at >> 11 & 0x7ff, at & 0x7ff});
    }
    fill_outside(a, source, buffer, 1);
    request_block(a, source, block, buffer);
    commit_copies();
  };
  float sums[kWeights] = {};
  prepare(split, buffers);
  int reading = 0;
#pragma unroll 1
  for (int number = split; number < tiles; number += d.splits, reading = 1 - reading) {
    const GridPlace tile = tile_of(t, number);
    float grads[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int at = output_place(a, tile, place, i * 32 + lane);
      grads[i] = at >= 0 && place.o < p.g.out_channels ? d.grad[at] : 0.0f;
    }
    wait_copies<0>();
    __syncthreads();  // this tile's input is there for all, and all have read the last one's
    if (number + d.splits < tiles) {
      prepare(number + d.splits, buffers + (1 - reading) * buffer_floats);
    }
#pragma unroll
    for (int e = 0; e < kWeights; ++e) {
      if (e < count) {
        const int at = places[e];
#pragma unroll
        for (int i = 0; i < kPixels; ++i) sums[e] += grads[i] * pixels.input(i, at);
      }
    }
    pixels.move(reading == 0 ? 4 * buffer_floats : -4 * buffer_floats);
  }

#pragma unroll
  for (int e = 0; e < kWeights; ++e) {
    const float sum = warp_sum(sums[e]);
    if (lane == 0 && e < count) {
      d.sums[(split * p.weights + begin + e) * vector + column] = sum;
    }
  }
}

// dvalues [size] from partial sums [splits, size], in order.
__global__ void __launch_bounds__(kListThreads)
    sparse_conv2d_add_kernel(const float* sums, int splits, int64_t size, float* dvalues) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kListThreads + threadIdx.x;
  if (i >= size) return;
  float sum = sums[i];
  for (int s = 1; s < splits; ++s) sum += sums[s * size + i];
  dvalues[i] = sum;
}

}  // namespace gansparse::sparse_conv2d
