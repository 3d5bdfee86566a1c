// SPDX-License-Identifier: Apache-2.0
// What a warpgroup's asynchronous products mean (PTX ISA, "Asynchronous warpgroup-level matrix
// instructions": the fragments of sparse m64nNk32, the matrix descriptor, K-major without swizzle),
// written down independently of the kernels.
//
// A product is computed when it is issued, and its sums come as late as they may: until a wait that
// leaves none in flight they are NaN. The operands are looked at again when the product is waited
// for: by then neither A's registers nor B may have changed, and the race checker sees both reads.
// Not modelled: that the four warps of a warpgroup issue the same products; other swizzles.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "emulator/async_copies.h"
#include "emulator/warp_matrices.h"

namespace gansparse::emulator {

constexpr int kProductColumns = 256;

struct AsyncProducts {
  static constexpr int kMost = 4;
  struct Product {
    const uint32_t* a;
    uint32_t held[4];  // what `a` was
    uint64_t descriptor;
    uint64_t seen;  // of B: a checksum of this lane's share
    int group;
    Site site;
  };
  Product products[kMost];  // in flight, the first one first
  int count, group;
  bool begun;                        // since the last commit
  float* sums;                       // of all products in flight
  float value[kProductColumns / 2];  // theirs
};
// Behind the thread's copies.
constexpr size_t kProductsAt = (sizeof(AsyncCopies) + 15) / 16 * 16;
static_assert(kProductsAt + sizeof(AsyncProducts) <= kThreadStorage, "fits a thread's storage");

inline AsyncProducts& async_products() {
  return *reinterpret_cast<AsyncProducts*>(static_cast<char*>(thread_storage()) + kProductsAt);
}

[[noreturn]] inline void refuse_product(const Site& site, const char* what) {
  throw KernelError(std::string(site.what) + ": " + what + ", at " + site.file + ":" +
                    std::to_string(site.line));
}

// Shared memory begins at 0.
inline uint32_t shared_address(const void* place) {
  return static_cast<uint32_t>(static_cast<const char*>(place) -
                               static_cast<const char*>(dynamic_shared_memory()));
}

// Rows 8 part … of a column of B: 8 of 16 bits, as the descriptor's bits tell.
inline const volatile uint32_t* piece_of_b(uint64_t descriptor, int column, int part) {
  const uint64_t start = descriptor << 4 & 0x3ffff;           // bits 0 … 13
  const uint64_t leading = (descriptor >> 16 & 0x3fff) << 4;  // bits 16 … 29
  const uint64_t stride = (descriptor >> 32 & 0x3fff) << 4;   // bits 32 … 45
  return reinterpret_cast<const volatile uint32_t*>(
      static_cast<const char*>(dynamic_shared_memory()) + start + part * leading +
      column / 8 * stride + column % 8 * 16);
}

// Of every 32nd column, so that the lanes of a warp see all.
inline uint64_t checksum_of_b(uint64_t descriptor) {
  uint64_t sum = 0;
  for (int column = lane(); column < kProductColumns; column += 32) {
    for (int i = 0; i < 16; ++i) {
      sum = sum * 1000003 + piece_of_b(descriptor, column, i / 4)[i % 4];
    }
  }
  return sum;
}

inline void begin_async_products() { async_products().begun = true; }

inline void commit_async_products() {
  ++async_products().group;
  async_products().begun = false;
}

// Finishes all groups but the `pending` latest.
inline void wait_async_products(int pending) {
  AsyncProducts& all = async_products();
  int done = 0;
  for (; done < all.count && all.products[done].group < all.group - pending; ++done) {
    const AsyncProducts::Product& p = all.products[done];
    for (int i = 0; i < 4; ++i) {
      if (p.a[i] != p.held[i]) refuse_product(p.site, "registers of A changed before the wait");
    }
    if (checksum_of_b(p.descriptor) != p.seen) {
      refuse_product(p.site, "shared memory of B changed before the wait");
    }
  }
  for (int i = done; i < all.count; ++i) all.products[i - done] = all.products[i];
  const bool finished = done > 0 && done == all.count;
  all.count -= done;
  for (int i = 0; finished && i < kProductColumns / 2; ++i) all.sums[i] = all.value[i];
}

// c[64, 256] += A[64, 32] · B[32, 256], of which a warp has 16 rows.
template <class T>
void multiply_sparse_async(float (&c)[kProductColumns / 2], const uint32_t (&a)[4],
                           uint64_t descriptor, uint32_t metadata, const Site& site) {
  AsyncProducts& all = async_products();
  if (!all.begun) refuse_product(site, "begin_products is missing");
  if (async_copies().unfenced) refuse_product(site, "fence_products is missing after a copy");
  if ((descriptor & ~uint64_t{0x3fff3fff3fff}) != 0) {
    refuse_product(site, "the descriptor asks for a swizzle, an offset or what is no field");
  }
  if (all.count == AsyncProducts::kMost) refuse_product(site, "too many products are in flight");
  if (all.count > 0 && all.sums != c) refuse_product(site, "products in flight have other sums");
  const Parcel mine{{pair(a[0], a[1]), pair(a[2], a[3]), descriptor, 0, metadata}};
  const Parcel* lanes = exchange(0xffffffffu, mine, site);
  if (lanes[0].words[2] != descriptor) refuse_product(site, "lanes have different descriptors");

  AsyncProducts::Product& p = all.products[all.count++];
  p = {a, {a[0], a[1], a[2], a[3]}, descriptor, checksum_of_b(descriptor), all.group, site};
  for (int i = 0; all.count == 1 && i < kProductColumns / 2; ++i) {
    all.value[i] = c[i];
    c[i] = NAN;
  }
  all.sums = c;
  // ---- The lane's two rows of A: values and places ----
  float values[2][16];
  int places[2][16];
  for (int half = 0; half < 2; ++half) {
    const int row = lane() / 4 + 8 * half;
    int before = -1;
    for (int k = 0; k < 16; ++k) {
      values[half][k] = element_of_a<T>(lanes, row, k);
      // Lanes 0 and 1 of every four tell, of 16 columns of A each.
      const uint32_t word = word_of(lanes[row % 8 * 4 + k / 8], kMetadata);
      const int place = k / 2 * 4 + static_cast<int>(word >> (16 * half + k % 8 * 2) & 3u);
      if (place <= before) refuse_product(site, "metadata does not rise");
      places[half][k] = before = place;
    }
  }
  for (int pair = 0; pair < kProductColumns / 4; ++pair) {
    const int column = pair / 2 * 8 + lane() % 4 * 2 + pair % 2;
    float b[32];
    for (int k = 0; k < 32; ++k) {
      b[k] = element_of<T>(piece_of_b(descriptor, column, k / 8)[k % 8 / 2], k % 2);
    }
    for (int half = 0; half < 2; ++half) {
      float& sum = all.value[pair / 2 * 4 + half * 2 + pair % 2];
      for (int k = 0; k < 16; ++k) sum += values[half][k] * b[places[half][k]];
    }
  }
}

}  // namespace gansparse::emulator
