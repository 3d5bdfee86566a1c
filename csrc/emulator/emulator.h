// SPDX-License-Identifier: Apache-2.0
// CUDA C++ for a host compiler: what <op>_kernels.cuh sees in place of cuda_runtime.h, so that
// kernels run, and are checked, where there is neither GPU nor nvcc. README.md tells what is
// checked. Used by tests only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator/atomics.h"
#include "emulator/block.h"
#include "emulator/cuda_types.h"

// ---- The language -------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block runs at a time, so a block's shared memory can be static storage.
#define __shared__ static

#define threadIdx (::gansparse::emulator::thread_index())
#define blockIdx (::gansparse::emulator::block_index())
#define blockDim (::gansparse::emulator::block_dimensions())
#define gridDim (::gansparse::emulator::grid_dimensions())
#define warpSize 32

// The caller's place, by default arguments.
#define GANSPARSE_EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- Barriers -----------------------------------------------------------------------------------

inline void __syncthreads(GANSPARSE_EMULATOR_SITE) {
  gansparse::emulator::sync_threads({"__syncthreads", file, line});
}

inline void __syncwarp(unsigned mask = 0xffffffffu, GANSPARSE_EMULATOR_SITE) {
  gansparse::emulator::exchange(mask, 0, {"__syncwarp", file, line});
}

// Blocks and threads here see memory in one order.
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- Warp operations ----------------------------------------------------------------------------

namespace gansparse::emulator {

// The value of lane `source` where that lies in the caller's group of `width` lanes, or its own.
template <class T>
T shuffle(unsigned mask, T value, int source, int width, const Site& site) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "shuffles move up to 64 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const int group = lane() & ~(width - 1);
  const bool inside = source >= group && source < group + width;
  const uint64_t* values = exchange(mask, bits, site);
  const int from = inside ? source : lane();
  if ((mask >> from & 1) == 0) {
    throw KernelError(std::string(site.what) + " reads from a lane outside its mask at " +
                      site.file + ":" + std::to_string(site.line));
  }
  std::memcpy(&value, &values[from], sizeof value);
  return value;
}

inline unsigned ballot(unsigned mask, bool vote, const Site& site) {
  const uint64_t* votes = exchange(mask, vote ? 1 : 0, site);
  unsigned out = 0;
  for (unsigned i = 0; i < 32; ++i) {
    if ((mask >> i & 1) != 0 && votes[i] != 0) out |= 1u << i;
  }
  return out;
}

}  // namespace gansparse::emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, GANSPARSE_EMULATOR_SITE) {
  const int group = gansparse::emulator::lane() & ~(width - 1);
  return gansparse::emulator::shuffle(mask, value, group + (source & (width - 1)), width,
                                      {"__shfl_sync", file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   GANSPARSE_EMULATOR_SITE) {
  return gansparse::emulator::shuffle(mask, value,
                                      gansparse::emulator::lane() + static_cast<int>(delta), width,
                                      {"__shfl_down_sync", file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, GANSPARSE_EMULATOR_SITE) {
  return gansparse::emulator::shuffle(mask, value,
                                      gansparse::emulator::lane() - static_cast<int>(delta), width,
                                      {"__shfl_up_sync", file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, GANSPARSE_EMULATOR_SITE) {
  return gansparse::emulator::shuffle(mask, value, gansparse::emulator::lane() ^ bits, width,
                                      {"__shfl_xor_sync", file, line});
}
inline unsigned __ballot_sync(unsigned mask, int vote, GANSPARSE_EMULATOR_SITE) {
  return gansparse::emulator::ballot(mask, vote != 0, {"__ballot_sync", file, line});
}
inline int __any_sync(unsigned mask, int vote, GANSPARSE_EMULATOR_SITE) {
  return gansparse::emulator::ballot(mask, vote != 0, {"__any_sync", file, line}) != 0;
}
inline int __all_sync(unsigned mask, int vote, GANSPARSE_EMULATOR_SITE) {
  return gansparse::emulator::ballot(mask, vote != 0, {"__all_sync", file, line}) == mask;
}

// ---- Functions of one thread --------------------------------------------------------------------

template <class T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
