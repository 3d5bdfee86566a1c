// SPDX-License-Identifier: Apache-2.0
// Products of matrices by a warpgroup, four neighbouring warps, that it does not wait for (PTX:
// wgmma.mma_async.sp; sm_90a only). T is Half or BFloat16, sums are float:
//
//   C [64, 256] += A [64, 32] · B [32, 256]
//
// of each four neighbours in a row of A at most two are there. Warp w of the four has rows 16 w …
// of A and C. `a` and the metadata are those of multiply_sparse<T, 0> (tensor_core.cuh), for its 16
// rows; sum i of a lane is row lane / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (lane % 4) + i % 2. B
// lies in shared memory, and the tensor cores read it from there: in pieces of 16 bytes (8 of the
// 32 rows, at one column), 8 neighbouring columns one after the other; a descriptor tells the rest.
//
// The order of things, for all threads of the warpgroup:
//   begin_products()      after registers of `sums` or `a` were written, before products use them
//   multiply_sparse_async …, commit_products()     a group of products, in flight from here on
//   wait_products<n>()    before `sums` are read, or `a` and what B was are written again
// Shared memory that threads wrote, be it by copy_async, is seen by products that follow
// fence_products() of the writers and a barrier. The host meaning is in
// emulator/warpgroup_matrices.h.
#pragma once

#include <type_traits>

#include "common/cuda_language.cuh"
#include "common/half.h"
#ifdef __CUDACC__
#define GANSPARSE_WARPGROUP_SITE
#else
#include "emulator/warpgroup_matrices.h"
#define GANSPARSE_WARPGROUP_SITE , GANSPARSE_EMULATOR_SITE
#endif

namespace gansparse {

constexpr int kWarpgroupColumns = 256;
constexpr int kWarpgroupSums = kWarpgroupColumns / 2;  // of a lane

// Where B lies: `start` is rows 0 … 7 of column 0; rows 8 r … are r · row_bytes behind them,
// columns 8 n … n · column_bytes. All are multiples of 16, and the steps below 2^18.
__device__ __forceinline__ uint64_t matrix_descriptor(const void* start, int row_bytes,
                                                      int column_bytes) {
#ifdef __CUDA_ARCH__
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(start));
#elif !defined(__CUDACC__)
  const unsigned address = emulator::shared_address(start);
#else
  const unsigned address = 0;
#endif
  // 18 bits: above them, in a cluster, stands which block's shared memory it is.
  const unsigned low = (address & 0x3ffff) >> 4 | static_cast<unsigned>(row_bytes) >> 4 << 16;
  return low | static_cast<uint64_t>(static_cast<unsigned>(column_bytes) >> 4) << 32;
}

__device__ __forceinline__ void fence_products() {
#ifdef __CUDA_ARCH__
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#elif !defined(__CUDACC__)
  emulator::fence_async_proxy();
#endif
}

__device__ __forceinline__ void begin_products() {
#ifdef __CUDA_ARCH__
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#elif !defined(__CUDACC__)
  emulator::begin_async_products();
#endif
}

__device__ __forceinline__ void commit_products() {
#ifdef __CUDA_ARCH__
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#elif !defined(__CUDACC__)
  emulator::commit_async_products();
#endif
}

// Waits for all groups but the kPending latest.
template <int kPending>
__device__ __forceinline__ void wait_products() {
#ifdef __CUDA_ARCH__
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#elif !defined(__CUDACC__)
  emulator::wait_async_products(kPending);
#endif
}

// Keeps the compiler from moving what touches the sums past this point.
__device__ __forceinline__ void pin(float (&sums)[kWarpgroupSums]) {
#pragma unroll
  for (int i = 0; i < kWarpgroupSums; ++i) {
#ifdef __CUDA_ARCH__
    asm volatile("" : "+f"(sums[i])::"memory");
#else
    (void)sums;
#endif
  }
}

#ifdef __CUDA_ARCH__
// The numbers of operands n0 … n9; the sums' 16 operands from i on.
#define GANSPARSE_TEN(n) \
  "%" #n "0,%" #n "1,%" #n "2,%" #n "3,%" #n "4,%" #n "5,%" #n "6,%" #n "7,%" #n "8,%" #n "9,"
#define GANSPARSE_FOUR_SUMS(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define GANSPARSE_SUMS(i)                                                             \
  GANSPARSE_FOUR_SUMS(i), GANSPARSE_FOUR_SUMS((i) + 4), GANSPARSE_FOUR_SUMS((i) + 8), \
      GANSPARSE_FOUR_SUMS((i) + 12)
#define GANSPARSE_WARPGROUP_PRODUCT(types) \
  asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; "                                         \
               "wgmma.mma_async.sp.sync.aligned.m64n256k32.f32." types                         \
               " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," GANSPARSE_TEN(1) GANSPARSE_TEN(2)            \
                   GANSPARSE_TEN(3) GANSPARSE_TEN(4) GANSPARSE_TEN(5) GANSPARSE_TEN(6)         \
                       GANSPARSE_TEN(7) GANSPARSE_TEN(8) GANSPARSE_TEN(9) GANSPARSE_TEN(10)    \
                           GANSPARSE_TEN(11) "%120,%121,%122,%123,%124,%125,%126,%127}, "      \
               "{%128,%129,%130,%131}, %132, %133, 0, p, 1, 1, 0; }"                           \
               : GANSPARSE_SUMS(0), GANSPARSE_SUMS(16), GANSPARSE_SUMS(32),                    \
                 GANSPARSE_SUMS(48), GANSPARSE_SUMS(64), GANSPARSE_SUMS(80),                   \
                 GANSPARSE_SUMS(96), GANSPARSE_SUMS(112)                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(metadata))
#endif

template <class T>
__device__ __forceinline__ void multiply_sparse_async(float (&c)[kWarpgroupSums],
                                                      const uint32_t (&a)[4], uint64_t b,
                                                      uint32_t metadata GANSPARSE_WARPGROUP_SITE) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<T, Half>) {
    GANSPARSE_WARPGROUP_PRODUCT("f16.f16");
  } else {
    GANSPARSE_WARPGROUP_PRODUCT("bf16.bf16");
  }
#elif !defined(__CUDACC__)
  emulator::multiply_sparse_async<T>(c, a, b, metadata, {"multiply_sparse_async", file, line});
#endif
}

}  // namespace gansparse
