// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of instance_norm. Contract and plan: instance_norm.h.
//
// Version 1: 16-byte accesses; eight neighbouring channels a thread.
#pragma once

#include <cmath>

#include "common/half.h"
#include "common/moments.cuh"
#include "common/vec.cuh"
#include "ops/instance_norm/instance_norm.h"

namespace gansparse::instance_norm {

struct Arguments {
  Problem p;
  Plan plan;
  const float* partial;  // [N, parts, 3, C]: moments, which the last kernel joins
  int parts;
};

// What a block and a thread have.
struct Place {
  int64_t n, first, end;  // picture; pixels of the tile
  int tile, row, channel;
  bool there;  // are the thread's channels?
};

__device__ __forceinline__ Place place_of(const Arguments& a) {
  const int thread = static_cast<int>(threadIdx.x);
  const int block = static_cast<int>(blockIdx.x);
  Place at;
  at.tile = block / a.plan.slabs % a.plan.tiles;
  at.n = block / a.plan.slabs / a.plan.tiles;
  at.first = int64_t{at.tile} * a.plan.rounds * kRound;
  at.end = min(at.first + int64_t{a.plan.rounds} * kRound, a.p.pixels);
  at.row = thread / (kSlab / 8);
  at.channel = block % a.plan.slabs * kSlab + thread % (kSlab / 8) * 8;
  at.there = at.channel < a.p.channels;
  return at;
}

// ---- Sums ---------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    instance_norm_sums_kernel(const GANSPARSE_GRID_CONSTANT Arguments a, float* partial) {
  __shared__ float means[kRows][kSlab];
  __shared__ float squares[kRows][kSlab];
  __shared__ int counts[kRows];
  const Problem& p = a.p;
  const Place at = place_of(a);
  const int thread = static_cast<int>(threadIdx.x);
  const T* input = static_cast<const T*>(p.input) + at.n * p.pixels * p.channels;

  // ---- A thread's pixels, 4 at a time: their mean, the distances from it, joined to the rest ----
  float mean[8] = {};
  float square[8] = {};
  int count = 0;
#pragma unroll 1
  for (int64_t from = at.first + at.row; at.there && from < at.end; from += kRound) {
    Vec<T, 8> x[kEach];
    int here = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t pixel = from + i * kRows;
      if (pixel < at.end) {
        x[i] = load<8>(input + pixel * p.channels + at.channel);
        here = i + 1;
      }
    }
    const float part = 1.0f / static_cast<float>(here);
    const float weight = static_cast<float>(here) / static_cast<float>(count + here);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) sum += i < here ? to_float(x[i].item[e]) : 0.0f;
      const float middle = sum * part;
      float distances = 0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const float distance = i < here ? to_float(x[i].item[e]) - middle : 0.0f;
        distances += distance * distance;
      }
      const float apart = middle - mean[e];
      square[e] += distances + apart * apart * static_cast<float>(count) * weight;
      mean[e] += apart * weight;
    }
    count += here;
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    means[at.row][thread % (kSlab / 8) * 8 + e] = mean[e];
    squares[at.row][thread % (kSlab / 8) * 8 + e] = square[e];
  }
  // All threads of a row have as many; the first one's channels are always there.
  if (thread % (kSlab / 8) == 0) counts[at.row] = count;
  __syncthreads();  // all threads' sums are there

  // ---- A channel a thread ----
  const int channel = at.channel / kSlab * kSlab + thread;
  if (thread >= kSlab || channel >= p.channels) return;
  float total = 0;
  for (int row = 0; row < kRows; ++row) {
    total += means[row][thread] * static_cast<float>(counts[row]);
  }
  const float pixels = static_cast<float>(at.end - at.first);
  const float middle = total / pixels;
  float distances = 0;
  for (int row = 0; row < kRows; ++row) {
    const float apart = means[row][thread] - middle;
    distances += squares[row][thread] + apart * apart * static_cast<float>(counts[row]);
  }
  store_moments(partial + (at.n * a.plan.tiles + at.tile) * 3 * p.channels, p.channels, channel,
                {pixels, middle, distances});
}

// Of the problem's moments each `each` neighbouring parts become one of partial's; a thread has a
// channel of them.
__global__ void __launch_bounds__(kThreads)
    instance_norm_join_kernel(const GANSPARSE_GRID_CONSTANT Arguments a, int64_t each,
                              float* partial) {
  const Problem& p = a.p;
  const int64_t number = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t channel = number % p.channels;
  const int64_t to = number / p.channels;
  if (to >= p.batch * a.parts) return;
  const int64_t first = to % a.parts * each;
  const float* from = p.moments + (to / a.parts * p.parts + first) * 3 * p.channels;
  const int64_t left = p.parts - first;
  const int parts = static_cast<int>(left < each ? left : each);
  store_moments(partial + to * 3 * p.channels, p.channels, channel,
                joined(from, parts, p.channels, channel));
}

// ---- Norm ---------------------------------------------------------------------------------------

__device__ __forceinline__ float activate(const Problem& p, float z, float slope) {
  if (p.activation == Activation::kRelu) return z < 0 ? 0.0f : z;  // NaN passes
  if (p.activation == Activation::kLeaky) return z >= 0 ? z : z * slope;
  if (p.activation == Activation::kTanh) return tanhf(z);
  return z;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    instance_norm_apply_kernel(const GANSPARSE_GRID_CONSTANT Arguments a) {
  __shared__ float means[kSlab];
  __shared__ float scales[kSlab];
  __shared__ float shifts[kSlab];
  __shared__ float slopes[kSlab];
  const Problem& p = a.p;
  const Place at = place_of(a);
  const int thread = static_cast<int>(threadIdx.x);

  // ---- Mean and variance of a channel a thread, of all tiles ----
  const int channel = at.channel / kSlab * kSlab + thread;
  if (thread < kSlab && channel < p.channels) {
    const Moments all =
        joined(a.partial + at.n * a.parts * 3 * p.channels, a.parts, p.channels, channel);
    means[thread] = all.mean;
    scales[thread] = (p.weight ? p.weight[channel] : 1.0f) /
                     sqrtf(all.distances / static_cast<float>(p.pixels) + p.eps);
    shifts[thread] = p.bias ? p.bias[channel] : 0.0f;
    slopes[thread] = p.slopes ? p.slopes[channel * p.slope_step] : p.slope;
  }
  __syncthreads();  // all channels' numbers are there
  if (!at.there) return;

  // ---- Apply ----
  const T* input = static_cast<const T*>(p.input);
  const T* residual = static_cast<const T*>(p.residual);
  T* output = static_cast<T*>(p.output);
  const int mine = thread % (kSlab / 8) * 8;
  float mean[8], scale[8], shift[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    mean[e] = means[mine + e], scale[e] = scales[mine + e], shift[e] = shifts[mine + e];
  }
#pragma unroll 2
  for (int64_t pixel = at.first + at.row; pixel < at.end; pixel += kRows) {
    const int64_t place = (at.n * p.pixels + pixel) * p.channels + at.channel;
    const auto x = load<8>(input + place);
    Vec<T, 8> added{};
    if (residual) added = load<8>(residual + place);
    Vec<uint32_t, 4> words;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      float z = (to_float(x.item[e]) - mean[e]) * scale[e] + shift[e];
      if (residual) z += to_float(added.item[e]);
      T rounded;
      round_to(activate(p, z, slopes[mine + e]), &rounded);
      const uint32_t bits = rounded.bits;
      words.item[e / 2] = e % 2 == 0 ? bits : words.item[e / 2] | bits << 16;
    }
    store_global(reinterpret_cast<uint32_t*>(output + place), words);
  }
}

}  // namespace gansparse::instance_norm
