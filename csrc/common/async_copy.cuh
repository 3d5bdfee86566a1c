// SPDX-License-Identifier: Apache-2.0
// Copies from global to shared memory that the thread does not wait for (PTX: cp.async), in groups.
// A thread's wait is about its own copies: other threads see them after a barrier that follows it.
#pragma once

#include "common/cuda_language.cuh"
#ifndef __CUDACC__
#include "emulator/async_copies.h"
#endif

namespace gansparse {

// 16 bytes, past the first cache. Both addresses are multiples of 16. Where nothing is `there`,
// zeros are written and `from` (any valid address) is not read.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
#ifdef __CUDA_ARCH__
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
#elif !defined(__CUDACC__)
  emulator::issue_async_copy<emulator::AsyncPair>(to, there ? from : nullptr);
#endif
}

// The same with 4 bytes, which are there: for what is no multiple of 16 bytes apart.
__device__ __forceinline__ void copy_async_word(void* to, const void* from) {
#ifdef __CUDA_ARCH__
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(from) : "memory");
#elif !defined(__CUDACC__)
  emulator::issue_async_copy<uint32_t>(to, from);
#endif
}

// Ends a group, which may be empty.
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
  emulator::commit_async_copies();
#endif
}

// Waits for all groups but the kPending latest.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#elif !defined(__CUDACC__)
  emulator::wait_async_copies(kPending);
#endif
}

}  // namespace gansparse
