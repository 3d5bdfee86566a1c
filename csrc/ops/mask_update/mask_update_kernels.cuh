// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of mask_update. Contract and keys: mask_update.h.
//
// The launches of a list of tensors, none of which waits for the host:
//   for each digit: count   histogram of the digit over the keys with the prefix so far
//                   choose  the bucket in which the threshold lies; clears the histogram
//   count_ties              of every stretch
//   scan_ties               ties before every stretch
//   write                   the masks
// Blocks are dealt out to the tensors in order, as in masked_adam_kernels.cuh. A block has kWarps
// stretches of its tensor, one a warp; lane l of round r has neighbours from 32 · r + l on, counted
// in neighbours, 16 bytes of scores and as many mask bytes at once; so the order of ties is that of
// rounds, lanes, neighbours. Arrays that are not aligned for that come one by one. All sums are of
// whole numbers: the same input gives the same masks.
#pragma once

#include "common/cuda_language.cuh"
#include "common/half.h"
#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "ops/mask_update/mask_update.h"

namespace gansparse::mask_update {

struct Config {
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kStretch = 1024;
  static constexpr int kBlockElements = kStretch * kWarps;
  static constexpr int kOfThread = kBuckets / kThreads;  // buckets, and stretches at a time

  static_assert(kBuckets % kThreads == 0, "every thread has as many buckets");
  static_assert(kBlockElements <= 0x7fffffff, "a block's histogram counts in 32 bits");
};

using Count = unsigned long long;  // of elements of a tensor, and a type that atomicAdd takes

// The kernels' argument; as much as fits into the 4 KB that every driver takes.
constexpr int kCapacity = 100;
struct Batch {
  int count;
  bool magnitude;
  bool monotone;
  int first_block[kCapacity + 1];
  Item items[kCapacity];
};
static_assert(sizeof(Batch) <= 4000, "a batch and the pointers beside it fit into 4 KB");

// How far the selection of one tensor has come. All zero to begin with.
struct State {
  uint64_t threshold;  // the digits that are known
  int64_t left;        // how many of the keys that begin with them go
};

__device__ __forceinline__ int item_of_block(const Batch& batch, int block) {
  int low = 0;
  int high = batch.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (batch.first_block[middle] <= block ? low : high) = middle;
  }
  return low;
}

// One warp's stretch of a tensor.
template <class T>
struct Stretch {
  using Key = KeyOf<T>;
  static constexpr int kNeighbours = sizeof(T) == 2 ? 8 : 4;  // of a lane in a round
  static constexpr int kRounds = Config::kStretch / (kWarp * kNeighbours);

  const T* scores;
  uint8_t* mask;
  int64_t begin;  // the lane's first element
  int64_t end;    // of the tensor
  bool magnitude;
  bool monotone;
  bool aligned;
  int item;
  int index;  // among all stretches of the batch

  __device__ __forceinline__ explicit Stretch(const Batch& batch)
      : magnitude(batch.magnitude), monotone(batch.monotone) {
    const int block = static_cast<int>(blockIdx.x);
    const int thread = static_cast<int>(threadIdx.x);
    item = item_of_block(batch, block);
    index = block * Config::kWarps + thread / kWarp;
    const int of_item = index - batch.first_block[item] * Config::kWarps;
    scores = static_cast<const T*>(batch.items[item].scores);
    mask = batch.items[item].mask;
    begin = static_cast<int64_t>(of_item) * Config::kStretch + thread % kWarp * kNeighbours;
    end = batch.items[item].numel;
    aligned = reinterpret_cast<uintptr_t>(scores) % alignof(Vec<T, kNeighbours>) == 0 &&
              reinterpret_cast<uintptr_t>(mask) % kNeighbours == 0;
  }

  // The lane's first element in a round, and how many it has there.
  __device__ __forceinline__ int64_t element(int round) const {
    return begin + round * (kWarp * kNeighbours);
  }
  __device__ __forceinline__ int count(int round) const {
    const int64_t left = end - element(round);
    return left <= 0 ? 0 : left < kNeighbours ? static_cast<int>(left) : kNeighbours;
  }

  // The keys of a round, 0 for those that are not there, and how many are.
  __device__ __forceinline__ int keys(int round, Key (&key)[kNeighbours]) const {
    const int64_t i = element(round);
    const int there = count(round);
    if (aligned && there == kNeighbours) {
      const auto score = load<kNeighbours>(scores + i);
      Vec<uint8_t, kNeighbours> kept{};
      if (monotone) kept = load<kNeighbours>(mask + i);
#pragma unroll
      for (int e = 0; e < kNeighbours; ++e) {
        key[e] = monotone && kept.item[e] == 0 ? Key(0) : key_of(score.item[e], magnitude);
      }
      return there;
    }
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      key[e] = 0;
      if (e < there && (!monotone || mask[i + e] != 0)) key[e] = key_of(scores[i + e], magnitude);
    }
    return there;
  }
};

template <class T>
__global__ void __launch_bounds__(Config::kThreads)
    mask_update_count_kernel(const GANSPARSE_GRID_CONSTANT Batch batch,
                             const State* states,  // [batch.count]
                             Count* histograms,    // [batch.count, kBuckets]
                             int digit) {
  using Key = KeyOf<T>;
  __shared__ unsigned histogram[kBuckets];
  const int thread = static_cast<int>(threadIdx.x);
  for (int b = thread; b < kBuckets; b += Config::kThreads) histogram[b] = 0;
  __syncthreads();  // the histogram is clear before anyone counts

  // ---- Count: key 0, of which there may be many, apart, or all lanes queue for one bucket ----
  const Stretch<T> stretch(batch);
  const Key prefix = static_cast<Key>(states[stretch.item].threshold);
  unsigned zeros = 0;
  using S = Stretch<T>;
#pragma unroll 1
  for (int round = 0; round < S::kRounds; ++round) {
    Key key[S::kNeighbours];
    const int there = stretch.keys(round, key);
#pragma unroll
    for (int e = 0; e < S::kNeighbours; ++e) {
      if (e >= there || !has_prefix(key[e], prefix, digit)) continue;
      if (key[e] == 0) {
        ++zeros;
      } else {
        atomicAdd(&histogram[digit_of(key[e], digit)], 1u);
      }
    }
  }
  zeros = warp_sum(zeros);
  if (thread % kWarp == 0 && zeros != 0) atomicAdd(&histogram[0], zeros);
  __syncthreads();  // all have counted before the sums are read

  // ---- Add to the tensor's ----
  Count* of_item = histograms + static_cast<int64_t>(stretch.item) * kBuckets;
  for (int b = thread; b < kBuckets; b += Config::kThreads) {
    if (histogram[b] != 0) atomicAdd(&of_item[b], static_cast<Count>(histogram[b]));
  }
}

// One block a tensor.
template <class Key>
__global__ void __launch_bounds__(Config::kThreads)
    mask_update_choose_kernel(const GANSPARSE_GRID_CONSTANT Batch batch,
                              State* states,      // [batch.count]
                              Count* histograms,  // [batch.count, kBuckets]
                              int digit) {
  using C = Config;
  const int item = static_cast<int>(blockIdx.x);
  const int first = static_cast<int>(threadIdx.x) * C::kOfThread;
  Count* histogram = histograms + static_cast<int64_t>(item) * kBuckets + first;
  const State state = states[item];
  const Count left = static_cast<Count>(digit == 0 ? batch.items[item].prune : state.left);

  Count counts[C::kOfThread];
  Count sum = 0;
#pragma unroll
  for (int b = 0; b < C::kOfThread; ++b) {
    counts[b] = histogram[b];
    histogram[b] = 0;  // for the next digit
    sum += counts[b];
  }
  // Its barriers also let everyone read the state before it is written.
  Count before = block_inclusive_sum<C::kThreads>(sum) - sum;
#pragma unroll
  for (int b = 0; b < C::kOfThread; ++b) {
    if (before < left && left <= before + counts[b]) {  // true of one bucket, or of none: left = 0
      const Key digits = static_cast<Key>(first + b) << digit_shift<Key>(digit);
      states[item] = {state.threshold | digits, static_cast<int64_t>(left - before)};
    }
    before += counts[b];
  }
}

template <class T>
__global__ void __launch_bounds__(Config::kThreads)
    mask_update_count_ties_kernel(const GANSPARSE_GRID_CONSTANT Batch batch,
                                  const State* states,  // [batch.count]
                                  Count* ties) {        // [stretches]
  const Stretch<T> stretch(batch);
  const KeyOf<T> threshold = static_cast<KeyOf<T>>(states[stretch.item].threshold);
  unsigned found = 0;
  using S = Stretch<T>;
#pragma unroll 1
  for (int round = 0; round < S::kRounds; ++round) {
    KeyOf<T> key[S::kNeighbours];
    const int there = stretch.keys(round, key);
#pragma unroll
    for (int e = 0; e < S::kNeighbours; ++e) found += e < there && key[e] == threshold ? 1 : 0;
  }
  found = warp_sum(found);
  if (threadIdx.x % kWarp == 0) ties[stretch.index] = found;
}

// One block a tensor: from the ties of each stretch to those before it.
__global__ void __launch_bounds__(Config::kThreads)
    mask_update_scan_ties_kernel(const GANSPARSE_GRID_CONSTANT Batch batch,
                                 Count* ties) {  // [stretches]
  using C = Config;
  __shared__ Count carry;
  const int item = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t begin = static_cast<int64_t>(batch.first_block[item]) * C::kWarps;
  const int64_t end = static_cast<int64_t>(batch.first_block[item + 1]) * C::kWarps;
  Count so_far = 0;
  for (int64_t from = begin; from < end; from += C::kThreads * C::kOfThread) {
    const int64_t first = from + static_cast<int64_t>(thread) * C::kOfThread;
    Count counts[C::kOfThread];
    Count sum = 0;
#pragma unroll
    for (int i = 0; i < C::kOfThread; ++i) {
      counts[i] = first + i < end ? ties[first + i] : 0;
      sum += counts[i];
    }
    const Count through = block_inclusive_sum<C::kThreads>(sum);
    Count before = so_far + through - sum;
#pragma unroll
    for (int i = 0; i < C::kOfThread; ++i) {
      if (first + i < end) ties[first + i] = before;
      before += counts[i];
    }
    if (thread == C::kThreads - 1) carry = so_far + through;
    __syncthreads();  // the last thread has written what all carry over …
    so_far = carry;
    __syncthreads();  // … and all have read it before it is written again
  }
}

template <class T>
__global__ void __launch_bounds__(Config::kThreads)
    mask_update_write_kernel(const GANSPARSE_GRID_CONSTANT Batch batch,
                             const State* states,         // [batch.count]
                             const Count* ties_before) {  // [stretches]
  using Key = KeyOf<T>;
  const Stretch<T> stretch(batch);
  const State state = states[stretch.item];
  const Key threshold = static_cast<Key>(state.threshold);
  const unsigned before_me = (1u << (threadIdx.x % kWarp)) - 1u;
  int64_t left = state.left - static_cast<int64_t>(ties_before[stretch.index]);
  using S = Stretch<T>;
#pragma unroll 1
  for (int round = 0; round < S::kRounds; ++round) {
    Key key[S::kNeighbours];
    const int there = stretch.keys(round, key);
    // ---- Ties before the lane's first element, and in the whole round ----
    int before = 0, all = 0;
#pragma unroll
    for (int e = 0; e < S::kNeighbours; ++e) {
      const unsigned ties = __ballot_sync(kFullWarp, e < there && key[e] == threshold);
      before += __popc(ties & before_me);
      all += __popc(ties);
    }
    Vec<uint8_t, S::kNeighbours> kept{};
#pragma unroll
    for (int e = 0; e < S::kNeighbours; ++e) {
      kept.item[e] = key[e] > threshold || (key[e] == threshold && before >= left) ? 1 : 0;
      before += key[e] == threshold ? 1 : 0;
    }
    uint8_t* to = stretch.mask + stretch.element(round);
    if (stretch.aligned && there == S::kNeighbours) {
      store(to, kept);
    } else {
#pragma unroll
      for (int e = 0; e < S::kNeighbours; ++e) {
        if (e < there) to[e] = kept.item[e];
      }
    }
    left -= all;
  }
}

}  // namespace gansparse::mask_update
