// SPDX-License-Identifier: Apache-2.0
// A fiber: a stack and a place in a computation, switched to and from by hand. One emulated CUDA
// thread is one fiber. The sanitizers are told of every switch, so ThreadSanitizer sees as many
// threads as the kernel has, and AddressSanitizer knows every stack.
#pragma once

#include <cstddef>
#include <exception>
#include <functional>

namespace gansparse::emulator {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next run() begins `work`. Whatever the fiber was in the middle of is abandoned.
  void prepare(const std::function<void()>& work);

  // From the scheduler: go on with the fiber until it suspends or is finished.
  void run();

  // From within the fiber: back to the scheduler.
  void suspend();

  bool finished() const { return finished_; }

  // What ended the fiber, if an exception did.
  std::exception_ptr failure() const { return failure_; }

 private:
  static void enter();
  void leave(bool for_good);

  void* mapping_;          // guard page, then the stack
  void* stack_ = nullptr;  // lowest address
  void* stack_pointer_ = nullptr;
  void* tsan_fiber_ = nullptr;
  void* asan_frames_ = nullptr;
  const std::function<void()>* work_ = nullptr;
  std::exception_ptr failure_;
  bool finished_ = true;
};

// Happens-before edges, as ThreadSanitizer counts them; nothing without it. `token` is any address.
void publish(void* token);
void observe(void* token);

}  // namespace gansparse::emulator
