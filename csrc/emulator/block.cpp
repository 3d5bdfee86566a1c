// SPDX-License-Identifier: Apache-2.0
// Not instrumented, as fiber.cpp and for its reason.
#include "emulator/block.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "emulator/fiber.h"

namespace gansparse::emulator {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kMaxThreads = 1024;  // CUDA's limit for a block

enum class State { kReady, kAtBarrier, kAtWarpOperation };

struct Thread {
  Fiber fiber;
  uint3 index{};
  int linear = 0;
  State state = State::kReady;
  Site site{};            // where it waits
  unsigned barriers = 0;  // it has passed, for the parity
  alignas(16) unsigned char storage[kThreadStorage];
};

// The meeting of the lanes of one mask. Values and tokens are kept for two rounds: a lane may read
// those of round n while others already deposit for n + 1, but no lane reaches n + 2 before it.
struct Meeting {
  uint32_t arrived = 0;
  unsigned round = 0;
  const char* what = nullptr;
  uint64_t values[2][kWarp] = {};
  Parcel parcels[2][kWarp] = {};
  char tokens[2] = {};
};

using Warp = std::map<uint32_t, Meeting>;  // by mask

struct Block {
  Launch launch;
  uint3 index{};
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> dynamic_shared;
  Thread* running = nullptr;
  // Addresses for publish and observe.
  char begin_token = 0;
  char end_token = 0;
  char barrier_tokens[2] = {};
} block;

std::string text(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

std::string text(const Site& site) {
  return std::string(site.what) + " at " + site.file + ":" + std::to_string(site.line);
}

// "10 threads wait in __syncthreads at k.cuh:7, 22 have exited"
std::string whereabouts() {
  std::map<std::string, int> places;
  for (const auto& thread : block.threads) {
    places[thread->fiber.finished() ? "have exited" : "wait in " + text(thread->site)] += 1;
  }
  std::string out;
  for (const auto& [place, count] : places) {
    out += (out.empty() ? "" : ", ") + std::to_string(count) + " threads " + place;
  }
  return out;
}

[[noreturn]] void fail(const std::string& what) {
  throw KernelError(what + " in block " + text(block.index) + ": " + whereabouts());
}

// Everyone who has not exited waits at a barrier. Lets them pass, or reports who should not be
// there.
void release_barrier() {
  const Site& first = block.threads[0]->site;
  for (const auto& thread : block.threads) {
    const bool here = !thread->fiber.finished() && thread->site.line == first.line &&
                      std::strcmp(thread->site.file, first.file) == 0;
    if (!here) fail("divergent __syncthreads");
  }
  for (const auto& thread : block.threads) thread->state = State::kReady;
}

void run_block(const std::function<void()>& kernel, std::mt19937_64& random) {
  const dim3 dims = block.launch.block;
  const int count = static_cast<int>(dims.x * dims.y * dims.z);
  while (static_cast<int>(block.threads.size()) < count) {
    block.threads.push_back(std::make_unique<Thread>());
  }
  block.threads.resize(static_cast<size_t>(count));
  block.warps.assign(static_cast<size_t>((count + kWarp - 1) / kWarp), Warp{});
  const size_t bytes = block.launch.dynamic_shared_bytes;
  block.dynamic_shared.reset(new unsigned char[bytes]);
  std::memset(block.dynamic_shared.get(), 0xff, bytes);

  publish(&block.begin_token);
  const std::function<void()> body = [&kernel] {
    observe(&block.begin_token);
    kernel();
    publish(&block.end_token);
  };
  for (int i = 0; i < count; ++i) {
    Thread& thread = *block.threads[static_cast<size_t>(i)];
    const unsigned n = static_cast<unsigned>(i);
    thread.linear = i;
    thread.index = {n % dims.x, n / dims.x % dims.y, n / (dims.x * dims.y)};
    thread.state = State::kReady;
    thread.barriers = 0;
    std::memset(thread.storage, 0, sizeof thread.storage);
    thread.fiber.prepare(body);
  }

  std::vector<Thread*> order;
  for (const auto& thread : block.threads) order.push_back(thread.get());
  for (;;) {
    if (block.launch.seed != 0) std::shuffle(order.begin(), order.end(), random);
    bool progress = false;
    int exited = 0;
    int at_barrier = 0;
    for (Thread* thread : order) {
      if (thread->fiber.finished() || thread->state != State::kReady) continue;
      block.running = thread;
      thread->fiber.run();
      if (thread->fiber.failure()) std::rethrow_exception(thread->fiber.failure());
      progress = true;
    }
    for (const Thread* thread : order) {
      exited += thread->fiber.finished() ? 1 : 0;
      at_barrier += !thread->fiber.finished() && thread->state == State::kAtBarrier ? 1 : 0;
    }
    if (exited == count) break;
    if (at_barrier + exited == count) {
      release_barrier();
    } else if (!progress) {
      fail("deadlock");
    }
  }
  observe(&block.end_token);
}

}  // namespace

void launch(const Launch& launch, const std::function<void()>& kernel) {
  const uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  if (threads == 0 || threads > kMaxThreads || blocks == 0) {
    throw KernelError("invalid launch: " + std::to_string(blocks) + " blocks of " +
                      std::to_string(threads) + " threads");
  }
  std::vector<uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), uint64_t{0});
  std::mt19937_64 random(launch.seed);
  if (launch.seed != 0) std::shuffle(order.begin(), order.end(), random);

  block.launch = launch;
  for (const uint64_t i : order) {
    const uint64_t row = i / launch.grid.x;
    block.index = {static_cast<unsigned>(i % launch.grid.x),
                   static_cast<unsigned>(row % launch.grid.y),
                   static_cast<unsigned>(row / launch.grid.y)};
    run_block(kernel, random);
  }
}

uint3 thread_index() { return block.running->index; }
uint3 block_index() { return block.index; }
dim3 block_dimensions() { return block.launch.block; }
dim3 grid_dimensions() { return block.launch.grid; }
int lane() { return block.running->linear % kWarp; }
void* dynamic_shared_memory() { return block.dynamic_shared.get(); }
void* thread_storage() { return block.running->storage; }

void sync_threads(const Site& site) {
  Thread& me = *block.running;
  // Two tokens in turn: who arrives at the next barrier must not be seen by who leaves this one.
  char* token = &block.barrier_tokens[me.barriers++ % 2];
  me.site = site;
  me.state = State::kAtBarrier;
  publish(token);
  me.fiber.suspend();
  observe(token);
}

namespace {

// Waits until all lanes of `mask` have come and left what `deposit` puts into their meeting;
// returns the meeting, and in *of_round which of its two rounds this one is.
template <class Deposit>
const Meeting& meet(uint32_t mask, const Site& site, const Deposit& deposit, unsigned* of_round) {
  Thread& me = *block.running;
  const uint32_t my_bit = 1u << lane();
  if ((mask & my_bit) == 0) {
    throw KernelError(text(site) + ": thread " + text(me.index) + " is not in its own mask");
  }
  const int first = me.linear - lane();
  Meeting& meeting = block.warps[static_cast<size_t>(first / kWarp)][mask];
  if (meeting.arrived == 0) meeting.what = site.what;
  if (std::strcmp(meeting.what, site.what) != 0) {
    throw KernelError("lanes of one mask call different operations in block " + text(block.index) +
                      ": " + meeting.what + " and " + text(site));
  }
  const unsigned parity = meeting.round % 2;
  deposit(meeting, parity);
  meeting.arrived |= my_bit;
  publish(&meeting.tokens[parity]);

  if (meeting.arrived == mask) {
    meeting.arrived = 0;
    meeting.round += 1;
    for (int other = 0; other < kWarp; ++other) {
      if ((mask >> other & 1) != 0) {
        block.threads[static_cast<size_t>(first + other)]->state = State::kReady;
      }
    }
  } else {
    me.site = site;
    me.state = State::kAtWarpOperation;
    me.fiber.suspend();
  }
  observe(&meeting.tokens[parity]);
  *of_round = parity;
  return meeting;
}

}  // namespace

const uint64_t* exchange(uint32_t mask, uint64_t value, const Site& site) {
  unsigned round = 0;
  const auto leave = [&](Meeting& m, unsigned parity) { m.values[parity][lane()] = value; };
  return meet(mask, site, leave, &round).values[round];
}

const Parcel* exchange(uint32_t mask, const Parcel& parcel, const Site& site) {
  unsigned round = 0;
  const auto leave = [&](Meeting& m, unsigned parity) { m.parcels[parity][lane()] = parcel; };
  return meet(mask, site, leave, &round).parcels[round];
}

}  // namespace gansparse::emulator
