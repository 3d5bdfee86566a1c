// SPDX-License-Identifier: Apache-2.0
// Threads on the CPU: those that torch already has.
//
// The library is not linked with an OpenMP runtime, because a second one beside torch's means two
// thread pools that fight over the cores. parallel.cpp finds the runtime which torch's own symbols
// resolve to (libgomp, or what was preloaded in its place), so torch.set_num_threads governs. Where
// there is none in the process, work runs on the calling thread; build_info()["openmp"] tells.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

namespace gansparse {

// Threads a parallel region started here may use.
int max_threads();

// The file of the OpenMP runtime in use, or "" if there is none.
std::string openmp_runtime();

namespace detail {
using Region = void (*)(int thread, int threads, void* context);
void run_region(int threads, Region region, void* context);
}  // namespace detail

// Calls body(begin, end) so that [0, n) is covered once, in contiguous shares: one a thread, and no
// more threads than give each at least `grain` items. Exceptions must not leave `body`.
template <class Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  const int64_t useful = (n + grain - 1) / grain;
  const int threads = static_cast<int>(std::min<int64_t>(useful, max_threads()));
  if (threads <= 1) {
    body(int64_t{0}, n);
    return;
  }
  struct Context {
    const Body& body;
    int64_t n;
  } context{body, n};
  detail::run_region(
      threads,
      [](int thread, int count, void* raw) {
        const auto& c = *static_cast<const Context*>(raw);
        const int64_t begin = c.n * thread / count;  // n < 2^63 / threads: far above any array
        const int64_t end = c.n * (thread + 1) / count;
        if (begin < end) c.body(begin, end);
      },
      &context);
}

}  // namespace gansparse
