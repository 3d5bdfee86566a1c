// SPDX-License-Identifier: Apache-2.0
// Products of small matrices by a whole warp on tensor cores (PTX: mma, mma.sp, ldmatrix; sm_80 and
// up). T is Half or BFloat16, sums are float. With g = lane / 4 and t = lane % 4, a lane holds
//
//   a[r]  two of A [16, 16]: row g + 8 (r % 2), columns 2 t + 8 (r / 2) and the next
//   b[r]  two of B [16, 8] or [32, 8]: rows 2 t + 8 r and the next, column g
//   c[i]  one of C [16, 8]: row g + 8 (i / 2), column 2 t + i % 2
//
// and where all three are double
//
//   a[r]  one of A [16, 4]: row g + 8 r, column t
//   b     one of B [4, 8]: row t, column g
//
// The host meaning, for tests, is in emulator/warp_matrices.h.
#pragma once

#include <type_traits>

#include "common/cuda_language.cuh"
#include "common/half.h"
#ifdef __CUDACC__
// Metadata in rising order is what newer processors want; the name is known from PTX 8.5 on.
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1205
#define GANSPARSE_MMA_SPARSE "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32."
#else
#define GANSPARSE_MMA_SPARSE "mma.sp.sync.aligned.m16n8k32.row.col.f32."
#endif
#define GANSPARSE_WARP_SITE
#else
#include "emulator/warp_matrices.h"
#define GANSPARSE_WARP_SITE , GANSPARSE_EMULATOR_SITE
#endif

namespace gansparse {

// c += A · B with A [16, 16], B [16, 8] (b[0], b[1]).
template <class T>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4],
                                         const uint32_t* b GANSPARSE_WARP_SITE) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<T, Half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#elif !defined(__CUDACC__)
  emulator::multiply_matrices<T>(c, a, b, {"multiply", file, line});
#endif
}

// c += A · B with A [16, 4], B [4, 8], in float64 throughout. Only sm_90 has an instruction of this
// size, and needs it: by public measurements m8n8k4, of which this is two, leaves half of its peak
// unused. Elsewhere that is all there is: ptxas takes m16n8k4 apart for sm_100.
__device__ __forceinline__ void multiply(double (&c)[4], const double (&a)[2],
                                         double b GANSPARSE_WARP_SITE) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
  asm volatile(
      "mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
      : "d"(a[0]), "d"(a[1]), "d"(b));
#elif defined(__CUDA_ARCH__)
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+d"(c[0]), "+d"(c[1])
               : "d"(a[0]), "d"(b));
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+d"(c[2]), "+d"(c[3])
               : "d"(a[1]), "d"(b));
#elif !defined(__CUDACC__)
  emulator::multiply_doubles(c, a, b, {"multiply", file, line});
#endif
}

// c += A · B with A [16, 32], of which each four neighbours in a row hold at most two weights, and
// B [32, 8]. `a` holds two of each four: A' [16, 16]. Column k of A' is column
// 4 (k / 2) + index[row, k] of A, where index[row, k] has two bits of a lane's `metadata`:
//   lane 4 (row % 8) + 2 kSelector + k / 8, from bit 16 (row / 8) + 2 (k % 8) on,
// rising within each pair. The other two lanes of four hold the metadata of the other selector.
template <class T, int kSelector>
__device__ __forceinline__ void multiply_sparse(float (&c)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[4],
                                                uint32_t metadata GANSPARSE_WARP_SITE) {
  static_assert(kSelector == 0 || kSelector == 1, "lanes 0, 1 or 2, 3 of each four");
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<T, Half>) {
    asm volatile(GANSPARSE_MMA_SPARSE
                 "f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, "
                 "%13;"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]),
                   "r"(b[3]), "r"(metadata), "n"(kSelector));
  } else {
    asm volatile(GANSPARSE_MMA_SPARSE
                 "bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, "
                 "%13;"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]),
                   "r"(b[3]), "r"(metadata), "n"(kSelector));
  }
#elif !defined(__CUDACC__)
  emulator::multiply_sparse_matrices<T>(c, a, b, metadata, kSelector,
                                        {"multiply_sparse", file, line});
#endif
}

// Four 8 x 8 matrices of 16 bits from shared memory: lane 8 m + r gives the address, a multiple of
// 16, of row r of matrix m, and gets in out[m] elements 2 t and 2 t + 1 of its row g. With pixels
// as rows and 32 neighbouring channels in four parts, out is b.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4],
                                              const void* row GANSPARSE_WARP_SITE) {
#ifdef __CUDA_ARCH__
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
#elif !defined(__CUDACC__)
  emulator::load_four_matrices(out, row, {"load_matrices", file, line});
#endif
}

// The same, but out[m] has element g of rows 2 t and 2 t + 1: the matrices come transposed. With
// pixels as rows and 8 neighbouring channels as columns, out is b of two products over 16 pixels.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[4],
                                                         const void* row GANSPARSE_WARP_SITE) {
#ifdef __CUDA_ARCH__
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
#elif !defined(__CUDACC__)
  emulator::load_four_transposed(out, row, {"load_matrices_transposed", file, line});
#endif
}

}  // namespace gansparse
