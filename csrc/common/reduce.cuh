// SPDX-License-Identifier: Apache-2.0
// Sums over a warp and a block, in a fixed order: the same input gives the same bits.
#pragma once

#include "common/cuda_language.cuh"

namespace gansparse {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// Every lane returns the sum of all 32. All lanes must call.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, distance);
  }
  return value;
}

// Every thread returns the sum over the block. All kThreads threads must call; 1-D blocks.
template <int kThreads, class T>
__device__ __forceinline__ T block_sum(T value) {
  static_assert(kThreads % kWarp == 0 && kThreads <= kWarp * kWarp, "whole warps, one sum each");
  constexpr int kWarps = kThreads / kWarp;
  __shared__ T partial[kWarps];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;

  value = warp_sum(value);
  __syncthreads();  // a previous call's readers are done with `partial`
  if (lane == 0) partial[warp] = value;
  __syncthreads();  // every warp's sum is written before anyone reads
  return warp_sum(lane < kWarps ? partial[lane] : T(0));
}

// Every thread returns the sum of its value and those of the threads before it. All kThreads
// threads must call; 1-D blocks.
template <int kThreads, class T>
__device__ __forceinline__ T block_inclusive_sum(T value) {
  static_assert(kThreads % kWarp == 0 && kThreads <= kWarp * kWarp, "whole warps, one sum each");
  constexpr int kWarps = kThreads / kWarp;
  __shared__ T total_of_warp[kWarps];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;

  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T before = __shfl_up_sync(kFullWarp, value, distance);
    if (lane >= distance) value += before;
  }
  if (lane == kWarp - 1) total_of_warp[warp] = value;
  __syncthreads();  // every warp's total is there
  for (int other = 0; other < warp; ++other) value += total_of_warp[other];
  __syncthreads();  // everyone has read the totals before they are written again
  return value;
}

}  // namespace gansparse
