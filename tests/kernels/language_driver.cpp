// SPDX-License-Identifier: Apache-2.0
// Each of the emulator's functions against what the CUDA C++ programming guide says of it. Prints
// what is wrong; status 0 means nothing. Argument 1 is the seed.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "common/reduce.cuh"

namespace emu = gansparse::emulator;

int failures = 0;

void expect(bool holds, const char* what, int thread) {
  if (holds) return;
  std::printf("%s is wrong in thread %d\n", what, thread);
  ++failures;
}
#define EXPECT(condition) expect(condition, #condition, thread)

__global__ void warp_operations() {
  const int thread = threadIdx.x;
  const int lane = thread % warpSize;
  constexpr unsigned kAll = gansparse::kFullWarp;
  EXPECT(__shfl_sync(kAll, lane, 5) == 5);
  EXPECT(__shfl_sync(kAll, lane, 35) == 3);  // modulo the width
  EXPECT(__shfl_sync(kAll, lane, 1, 8) == lane / 8 * 8 + 1);
  EXPECT(__shfl_up_sync(kAll, lane, 2) == (lane < 2 ? lane : lane - 2));
  EXPECT(__shfl_up_sync(kAll, lane, 2, 4) == (lane % 4 < 2 ? lane : lane - 2));
  EXPECT(__shfl_down_sync(kAll, lane, 3) == (lane > 28 ? lane : lane + 3));
  EXPECT(__shfl_down_sync(kAll, lane, 1, 16) == (lane % 16 == 15 ? lane : lane + 1));
  EXPECT(__shfl_xor_sync(kAll, lane, 16) == (lane ^ 16));
  EXPECT(__shfl_xor_sync(kAll, 0.5 * lane, 1) == 0.5 * (lane ^ 1));  // 64 bits
  EXPECT(__ballot_sync(kAll, lane % 2) == 0xaaaaaaaau);
  EXPECT(__any_sync(kAll, lane == 31) && !__any_sync(kAll, 0));
  EXPECT(__all_sync(kAll, lane < 32) && !__all_sync(kAll, lane != 4));
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  EXPECT(__ballot_sync(half, lane == 3 || lane == 20) == (lane < 16 ? 0x8u : 0x100000u));
  for (int round = 0; round < lane / 16 + 1; ++round) {  // the halves go their own ways …
    EXPECT(__shfl_xor_sync(half, lane + round, 1) == (lane ^ 1) + round);
  }
  __syncwarp();
  EXPECT(__shfl_sync(kAll, lane, 31) == 31);  // … and meet again
}

struct Cells {
  int sum = 0, most = -1, least = 1000, all = 0x7f, any = 0, swapped = -1, first = -1;
  unsigned long long wide = 0;
  float real = 0;
  double twice = 0;
};

__global__ void atomics(Cells* cells) {
  const int thread = threadIdx.x;
  atomicAdd(&cells->sum, thread);
  atomicAdd(&cells->wide, 1ull << 33);
  atomicAdd(&cells->real, 0.5f);
  atomicAdd(&cells->twice, 0.25);
  atomicMax(&cells->most, thread);
  atomicMin(&cells->least, thread);
  atomicAnd(&cells->all, ~(1 << thread % 3));
  atomicOr(&cells->any, 1 << thread % 8);
  atomicExch(&cells->swapped, 7);
  atomicCAS(&cells->first, -1, 5);
  atomicCAS(&cells->first, -1, 6);
}

__global__ void indices(std::vector<int>* seen) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned place = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  (*seen)[block * blockDim.x * blockDim.y * blockDim.z + place] += 1;
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const uint64_t seed = std::strtoull(argv[1], nullptr, 10);
  emu::launch({dim3(2), dim3(64), 0, seed}, [] { warp_operations(); });

  Cells cells;
  emu::launch({dim3(1), dim3(64), 0, seed}, [&] { atomics(&cells); });
  const int thread = -1;
  EXPECT(cells.sum == 2016 && cells.wide == 64ull << 33);
  EXPECT(cells.real == 32.0f && cells.twice == 16.0);
  EXPECT(cells.most == 63 && cells.least == 0);
  EXPECT(cells.all == 0x78 && cells.any == 0xff);
  EXPECT(cells.swapped == 7 && cells.first == 5);

  std::vector<int> seen(2 * 3 * 4 * 5 * 6 * 7);
  emu::launch({dim3(2, 3, 4), dim3(5, 6, 7), 0, seed}, [&] { indices(&seen); });
  for (int times : seen) EXPECT(times == 1);

  EXPECT(__popc(0xf0u) == 4 && __clz(1) == 31 && __clz(0) == 32 && __ffs(8) == 4 && __ffs(0) == 0);
  EXPECT(rsqrtf(4.0f) == 0.5f);
  const float value = 2.5f;
  EXPECT(__ldg(&value) == 2.5f);
  return failures == 0 ? 0 : 1;
}
