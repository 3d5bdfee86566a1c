// SPDX-License-Identifier: Apache-2.0
// What the operations on a warp's matrices mean, spelled out: who holds which element is written
// down here once more, and independently of the kernels (PTX ISA, "Matrix Fragments for
// mma.m16n8k16", "… for sparse mma.m16n8k32", "… mma.m16n8k4" with .f64, "ldmatrix"). The order of
// additions within one operation is not defined by PTX; here it is that of k.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "common/half.h"
#include "emulator/block.h"

namespace gansparse::emulator {

inline uint64_t pair(uint32_t low, uint32_t high) {
  return low | static_cast<uint64_t>(high) << 32;
}

inline uint32_t word_of(const Parcel& parcel, int i) {
  return static_cast<uint32_t>(parcel.words[i / 2] >> (i % 2 * 32));
}

// Element `half` of a register that holds two of T.
template <class T>
float element_of(uint32_t word, int half) {
  return to_float(T{static_cast<uint16_t>(word >> (16 * half))});
}

// The registers of a lane's parcel: a[0] … a[3], b[0] …, metadata.
constexpr int kFirstB = 4;
constexpr int kMetadata = 8;

template <class T>
float element_of_a(const Parcel* lanes, int row, int column) {  // [16, 16]
  const int lane = row % 8 * 4 + column % 8 / 2;
  return element_of<T>(word_of(lanes[lane], row / 8 + column / 8 * 2), column % 2);
}

template <class T>
float element_of_b(const Parcel* lanes, int row, int column) {  // [16 or 32, 8]
  return element_of<T>(word_of(lanes[column * 4 + row % 8 / 2], kFirstB + row / 8), row % 2);
}

// c[16, 8] += a[16, 16] · b[16, 8]; the lane's four elements.
template <class T>
void multiply_matrices(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b, const Site& site) {
  const Parcel mine{{pair(a[0], a[1]), pair(a[2], a[3]), pair(b[0], b[1]), 0, 0}};
  const Parcel* lanes = exchange(0xffffffffu, mine, site);
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8;
    const int column = lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      c[i] += element_of_a<T>(lanes, row, k) * element_of_b<T>(lanes, k, column);
    }
  }
}

inline double double_of(const Parcel& parcel, int i) {
  double x;
  std::memcpy(&x, &parcel.words[i], sizeof x);
  return x;
}

// c[16, 8] += a[16, 4] · b[4, 8] in float64. A word is a number here: two of a, one of b.
inline void multiply_doubles(double (&c)[4], const double (&a)[2], double b, const Site& site) {
  Parcel mine{};
  std::memcpy(mine.words, a, sizeof a);
  std::memcpy(mine.words + 2, &b, sizeof b);
  const Parcel* lanes = exchange(0xffffffffu, mine, site);
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8;
    const int column = lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 4; ++k) {
      c[i] += double_of(lanes[row % 8 * 4 + k], row / 8) * double_of(lanes[column * 4 + k], 2);
    }
  }
}

// c[16, 8] += A[16, 32] · b[32, 8], where of each four neighbours in a row of A two are held in `a`
// and the metadata tells which, in rising order.
template <class T>
void multiply_sparse_matrices(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                              uint32_t metadata, int selector, const Site& site) {
  const Parcel mine{
      {pair(a[0], a[1]), pair(a[2], a[3]), pair(b[0], b[1]), pair(b[2], b[3]), metadata}};
  const Parcel* lanes = exchange(0xffffffffu, mine, site);
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8;
    const int column = lane() % 4 * 2 + i % 2;
    int before = -1;
    for (int k = 0; k < 16; ++k) {
      // Two lanes of every four tell of 16 of the 32 columns each: rows r and r + 8.
      const Parcel& teller = lanes[row % 8 * 4 + selector * 2 + k / 8];
      const uint32_t told = word_of(teller, kMetadata) >> (row / 8 * 16 + k % 8 * 2) & 3u;
      const int place = k / 2 * 4 + static_cast<int>(told);
      if (place <= before) {
        throw KernelError(std::string(site.what) + ": metadata does not rise, at " + site.file +
                          ":" + std::to_string(site.line));
      }
      before = place;
      c[i] += element_of_a<T>(lanes, row, k) * element_of_b<T>(lanes, place, column);
    }
  }
}

// Four 8 x 8 matrices of 16 bits; lane 8 m + r brings the address of row r of matrix m.
inline void load_four_matrices(uint32_t (&out)[4], const void* row, const Site& site) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) __builtin_trap();
  const uint64_t* rows = exchange(0xffffffffu, reinterpret_cast<uintptr_t>(row), site);
  for (int m = 0; m < 4; ++m) {
    const auto* from = reinterpret_cast<const volatile uint32_t*>(rows[8 * m + lane() / 4]);
    out[m] = from[lane() % 4];
  }
}

// The same, transposed: the lane gets two neighbouring rows' elements of one column.
inline void load_four_transposed(uint32_t (&out)[4], const void* row, const Site& site) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) __builtin_trap();
  const uint64_t* rows = exchange(0xffffffffu, reinterpret_cast<uintptr_t>(row), site);
  for (int m = 0; m < 4; ++m) {
    uint32_t halves[2];
    for (int e = 0; e < 2; ++e) {
      const uint64_t from = rows[8 * m + lane() % 4 * 2 + e];
      halves[e] = reinterpret_cast<const volatile uint16_t*>(from)[lane() / 4];
    }
    out[m] = halves[0] | halves[1] << 16;
  }
}

}  // namespace gansparse::emulator
