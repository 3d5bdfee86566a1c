// SPDX-License-Identifier: Apache-2.0
// Asynchronous copies of one thread, as late as they may be: the destination is spoiled when a copy
// is issued and filled when its group is waited for. So whoever reads without having waited finds
// NaN, and the race checker sees both moments. Compiled with the kernel, hence instrumented.
#pragma once

#include <cstdint>
#include <cstring>

#include "emulator/block.h"

namespace gansparse::emulator {

struct AsyncCopies {
  static constexpr int kMost = 256;
  struct Copy {
    void* to;
    const void* from;  // null: zeros
    int group;
    bool word;  // or a pair of 8 bytes
  };
  int first, count, group;  // pending: a ring
  bool unfenced;            // some are done that the tensor cores of a warpgroup need not see yet
  Copy copies[kMost];
};
static_assert(sizeof(AsyncCopies) <= kThreadStorage, "fits a thread's storage");

struct alignas(16) AsyncPair {
  uint64_t low, high;
};

// Of `from`, or of all ones or zeros, in stores that the race checker sees: not a memset or memcpy
// that the compiler writes out itself.
inline void store_async(const AsyncCopies::Copy& copy, uint64_t instead) {
  if (copy.word) {
    const auto* word = static_cast<const volatile uint32_t*>(copy.from);
    *static_cast<volatile uint32_t*>(copy.to) = word ? *word : static_cast<uint32_t>(instead);
    return;
  }
  volatile uint64_t* words = static_cast<volatile uint64_t*>(copy.to);
  const volatile uint64_t* source = static_cast<const volatile uint64_t*>(copy.from);
  words[0] = source == nullptr ? instead : source[0];
  words[1] = source == nullptr ? instead : source[1];
}

inline AsyncCopies& async_copies() { return *static_cast<AsyncCopies*>(thread_storage()); }

// T: 4 or 16 bytes.
template <class T>
void issue_async_copy(void* to, const void* from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 16, "a word or a pair");
  AsyncCopies& all = async_copies();
  if (all.count == AsyncCopies::kMost) throw KernelError("too many copies are under way");
  if (reinterpret_cast<uintptr_t>(to) % sizeof(T) != 0 ||
      reinterpret_cast<uintptr_t>(from) % sizeof(T) != 0) {
    __builtin_trap();
  }
  const AsyncCopies::Copy copy{to, from, all.group, sizeof(T) == 4};
  store_async({to, nullptr, 0, copy.word}, ~uint64_t{0});
  all.copies[(all.first + all.count++) % AsyncCopies::kMost] = copy;
}

inline void commit_async_copies() { ++async_copies().group; }

// Finishes all groups but the `pending` latest.
inline void wait_async_copies(int pending) {
  AsyncCopies& all = async_copies();
  while (all.count > 0 && all.copies[all.first].group < all.group - pending) {
    store_async(all.copies[all.first], 0);
    all.first = (all.first + 1) % AsyncCopies::kMost;
    --all.count;
    all.unfenced = true;
  }
}

// What is done is seen by asynchronous products from here on.
inline void fence_async_proxy() { async_copies().unfenced = false; }

}  // namespace gansparse::emulator
