// SPDX-License-Identifier: Apache-2.0
// Runs the blocks of a launch on the host, one after another, each thread of a block as a fiber.
// This is the runtime; emulator.h dresses it up as CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "emulator/cuda_types.h"

namespace gansparse::emulator {

// What a kernel does that hardware would leave undefined or hang on.
struct KernelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where in the kernel's source a thread calls a collective operation, and which.
struct Site {
  const char* what;  // "__syncthreads"
  const char* file;
  int line;
};

struct Launch {
  dim3 grid;
  dim3 block;
  size_t dynamic_shared_bytes = 0;
  // 0: blocks and threads run in order. Otherwise blocks, and the threads of a block at every round
  // of the scheduler, run in an order drawn from this seed.
  uint64_t seed = 0;
};

// Runs `kernel` once a thread. Throws KernelError where threads of a block wait at different
// __syncthreads or for one that has exited, and where a warp operation's lanes don't all come.
void launch(const Launch& launch, const std::function<void()>& kernel);

// ---- For the running thread ---------------------------------------------------------------------

uint3 thread_index();
uint3 block_index();
dim3 block_dimensions();
dim3 grid_dimensions();
int lane();  // 0 … 31 within the warp

void sync_threads(const Site& site);

// All lanes of `mask` leave a value and get everyone's: 32 values, of which those of `mask` count.
// They stay valid until the thread's next warp operation.
const uint64_t* exchange(uint32_t mask, uint64_t value, const Site& site);

// The same with up to kParcelWords words a lane: what an operation on a warp's matrices needs.
constexpr int kParcelWords = 5;
struct Parcel {
  uint64_t words[kParcelWords];
};
const Parcel* exchange(uint32_t mask, const Parcel& parcel, const Site& site);

// Memory of the running thread's own, all zero when its block begins.
constexpr size_t kThreadStorage = 8192;
void* thread_storage();

// The block's dynamic shared memory: fresh for every block, filled with 0xff (NaN), 16-aligned.
void* dynamic_shared_memory();

}  // namespace gansparse::emulator
