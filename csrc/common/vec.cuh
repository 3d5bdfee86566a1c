// SPDX-License-Identifier: Apache-2.0
// N neighbouring items as one object, moved by 16-byte (or, if N items are fewer bytes, one
// narrower) memory instructions.
#pragma once

#include <cstdint>

#include "common/cuda_language.cuh"

namespace gansparse {

constexpr int kMaxAccessBytes = 16;

template <class T, int N>
struct alignas(sizeof(T) * N < kMaxAccessBytes ? sizeof(T) * N : kMaxAccessBytes) Vec {
  static_assert((N & (N - 1)) == 0, "a power of two, so that vectors stay aligned");
  T item[N];
};

// Both need a pointer aligned to alignof(Vec<T, N>). On the device a misaligned one is a fault; the
// host, which would not mind, must not let it pass.
template <int N, class T>
__device__ __forceinline__ Vec<T, N> load(const T* from) {
#ifdef __CUDA_ARCH__
  return *reinterpret_cast<const Vec<T, N>*>(from);
#else
  if (reinterpret_cast<uintptr_t>(from) % alignof(Vec<T, N>) != 0) __builtin_trap();
  Vec<T, N> vec;
  for (int i = 0; i < N; ++i) vec.item[i] = from[i];  // the race checker does not see a memcpy
  return vec;
#endif
}

template <int N, class T>
__device__ __forceinline__ void store(T* to, const Vec<T, N>& vec) {
#ifdef __CUDA_ARCH__
  *reinterpret_cast<Vec<T, N>*>(to) = vec;
#else
  if (reinterpret_cast<uintptr_t>(to) % alignof(Vec<T, N>) != 0) __builtin_trap();
  for (int i = 0; i < N; ++i) to[i] = vec.item[i];
#endif
}

// 16 bytes to global memory in one instruction, where the compiler would split a `store`.
__device__ __forceinline__ void store_global(uint32_t* to, const Vec<uint32_t, 4>& vec) {
#ifdef __CUDA_ARCH__
  __stwb(reinterpret_cast<uint4*>(to),
         make_uint4(vec.item[0], vec.item[1], vec.item[2], vec.item[3]));
#else
  store<4>(to, vec);
#endif
}

}  // namespace gansparse
