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
  };
  int first, count, group;  // pending: a ring
  Copy copies[kMost];
};
static_assert(sizeof(AsyncCopies) <= kThreadStorage, "fits a thread's storage");

constexpr size_t kAsyncBytes = 16;

// Sixteen bytes as two stores, of `from` or of all ones or zeros: the race checker does not see a
// memset or memcpy that the compiler writes out itself.
inline void store_async(void* to, const void* from, uint64_t instead) {
  volatile uint64_t* words = static_cast<volatile uint64_t*>(to);
  const volatile uint64_t* source = static_cast<const volatile uint64_t*>(from);
  words[0] = source == nullptr ? instead : source[0];
  words[1] = source == nullptr ? instead : source[1];
}

inline AsyncCopies& async_copies() { return *static_cast<AsyncCopies*>(thread_storage()); }

inline void issue_async_copy(void* to, const void* from) {
  AsyncCopies& all = async_copies();
  if (all.count == AsyncCopies::kMost) throw KernelError("too many copies are under way");
  if (reinterpret_cast<uintptr_t>(to) % kAsyncBytes != 0 ||
      reinterpret_cast<uintptr_t>(from) % kAsyncBytes != 0) {
    __builtin_trap();
  }
  store_async(to, nullptr, ~uint64_t{0});
  all.copies[(all.first + all.count++) % AsyncCopies::kMost] = {to, from, all.group};
}

inline void commit_async_copies() { ++async_copies().group; }

// Finishes all groups but the `pending` latest.
inline void wait_async_copies(int pending) {
  AsyncCopies& all = async_copies();
  while (all.count > 0 && all.copies[all.first].group < all.group - pending) {
    const AsyncCopies::Copy& copy = all.copies[all.first];
    store_async(copy.to, copy.from, 0);
    all.first = (all.first + 1) % AsyncCopies::kMost;
    --all.count;
  }
}

}  // namespace gansparse::emulator
