// SPDX-License-Identifier: Apache-2.0
// Compiled without instrumentation even in a sanitized program: the state that fibers hand to the
// scheduler and back is the emulator's own business. EMULATOR_TSAN or EMULATOR_ASAN says which
// runtime the program is linked with.
#include "emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if !defined(__x86_64__)
#error "the emulator switches stacks in x86-64 assembly"
#endif

#ifdef EMULATOR_TSAN
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif
#ifdef EMULATOR_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void** frames, const void* stack, size_t size);
void __sanitizer_finish_switch_fiber(void* frames, const void** old_stack, size_t* old_size);
void __asan_unpoison_memory_region(const void* address, size_t size);
}
#endif

namespace gansparse::emulator {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // sanitized frames are several times the plain ones

// What belongs to the scheduler's own stack, and which fiber runs on top of it.
struct Scheduler {
  void* stack_pointer = nullptr;
  void* tsan_fiber = nullptr;
  void* asan_frames = nullptr;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  Fiber* running = nullptr;
} scheduler;

// Saves the callee-saved registers and the stack pointer in *from, and takes up those of `to`.
__attribute__((naked, noinline)) void switch_stacks(void** /*from*/, void* /*to*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi); movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}

}  // namespace

Fiber::Fiber() {
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  mapping_ = mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, guard, PROT_NONE);  // a stack that overflows faults
  stack_ = static_cast<char*>(mapping_) + guard;
}

Fiber::~Fiber() {
#ifdef EMULATOR_TSAN
  if (tsan_fiber_ != nullptr) __tsan_destroy_fiber(tsan_fiber_);
#endif
  munmap(mapping_, static_cast<size_t>(sysconf(_SC_PAGESIZE)) + kStackBytes);
}

void Fiber::prepare(const std::function<void()>& work) {
#ifdef EMULATOR_TSAN
  if (!finished_ && tsan_fiber_ != nullptr) {  // abandoned: its call stack is of no use
    __tsan_destroy_fiber(tsan_fiber_);
    tsan_fiber_ = nullptr;
  }
  if (tsan_fiber_ == nullptr) tsan_fiber_ = __tsan_create_fiber(0);
#endif
#ifdef EMULATOR_ASAN
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
  // What switch_stacks pops: six registers, then the address it returns to. That address lies at a
  // multiple of 16, as the ABI has it for the caller's side of a call.
  const uintptr_t top = reinterpret_cast<uintptr_t>(stack_) + kStackBytes - 64;
  void** slot = reinterpret_cast<void**>(top & ~uintptr_t{15});
  *slot = reinterpret_cast<void*>(&Fiber::enter);
  for (int i = 0; i < 6; ++i) *--slot = nullptr;
  stack_pointer_ = slot;
  asan_frames_ = nullptr;
  work_ = &work;
  failure_ = nullptr;
  finished_ = false;
}

void Fiber::run() {
  scheduler.running = this;
#ifdef EMULATOR_ASAN
  __sanitizer_start_switch_fiber(&scheduler.asan_frames, stack_, kStackBytes);
#endif
#ifdef EMULATOR_TSAN
  constexpr unsigned kNoEdge = 1;  // a switch orders nothing: only publish and observe do
  scheduler.tsan_fiber = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_fiber_, kNoEdge);
#endif
  switch_stacks(&scheduler.stack_pointer, stack_pointer_);
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(scheduler.asan_frames, nullptr, nullptr);
#endif
  scheduler.running = nullptr;
}

void Fiber::suspend() { leave(false); }

void Fiber::leave([[maybe_unused]] bool for_good) {
#ifdef EMULATOR_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &asan_frames_, scheduler.stack,
                                 scheduler.stack_bytes);
#endif
#ifdef EMULATOR_TSAN
  constexpr unsigned kNoEdge = 1;
  __tsan_switch_to_fiber(scheduler.tsan_fiber, kNoEdge);
#endif
  switch_stacks(&stack_pointer_, scheduler.stack_pointer);
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(asan_frames_, nullptr, nullptr);
#endif
}

void Fiber::enter() {
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes);
#endif
  Fiber* self = scheduler.running;
  try {
    (*self->work_)();
  } catch (...) {
    self->failure_ = std::current_exception();
  }
  self->finished_ = true;
  self->leave(true);
  std::abort();  // a finished fiber is not run again before prepare()
}

#ifdef EMULATOR_TSAN
void publish(void* token) { __tsan_release(token); }
void observe(void* token) { __tsan_acquire(token); }
#else
void publish(void*) {}
void observe(void*) {}
#endif

}  // namespace gansparse::emulator
