// SPDX-License-Identifier: Apache-2.0
// A warpgroup's products against plain products of plain matrices, and what goes wrong with them.
// warpgroup_driver NAME SEED. Status 0: all as it should be; 1: values differ, which are printed;
// 3: a KernelError, printed.
//
// NAME is "sound" or the fault: which step of the order in common/warpgroup.cuh is left out, or
// what of the descriptor or the metadata is wrong.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "common/async_copy.cuh"
#include "common/warpgroup.cuh"

using namespace gansparse;
namespace emu = gansparse::emulator;

constexpr int kThreads = 256;  // two warpgroups, of 64 rows each
constexpr int kRows = 128;
constexpr int kDepth = 32;
constexpr int kSteps = 2;
constexpr int kColumnBytes = 8 * 16 + 16;  // from 8 columns to the next, and a gap
constexpr int kRowBytes = kWarpgroupColumns / 8 * kColumnBytes + 32;
constexpr int kStepBytes = 4 * kRowBytes;

// Whole numbers of few bits: their products and sums are exact in any order.
template <class T>
struct Matrices {
  float a[kSteps][kRows][kDepth] = {};
  float compressed[kSteps][kRows][16];
  int index[kSteps][kRows][16];
  float b[kSteps][kDepth][kWarpgroupColumns];
  std::vector<T> pieces;  // b as shared memory has it

  explicit Matrices(std::mt19937& random) : pieces(kSteps * kStepBytes / sizeof(T)) {
    std::uniform_int_distribution<int> number(-8, 8);
    constexpr int kPairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
    for (int step = 0; step < kSteps; ++step) {
      for (int row = 0; row < kRows; ++row) {
        for (int k = 0; k < 16; ++k) {
          if (k % 2 == 0) std::copy_n(kPairs[random() % 6], 2, &index[step][row][k]);
          compressed[step][row][k] = static_cast<float>(number(random));
          a[step][row][k / 2 * 4 + index[step][row][k]] = compressed[step][row][k];
        }
      }
      for (int k = 0; k < kDepth; ++k) {
        for (int column = 0; column < kWarpgroupColumns; ++column) {
          b[step][k][column] = static_cast<float>(number(random));
          const int byte = step * kStepBytes + k / 8 * kRowBytes + column / 8 * kColumnBytes +
                           column % 8 * 16 + k % 8 * 2;
          round_to(b[step][k][column], &pieces[byte / sizeof(T)]);
        }
      }
    }
  }

  float product(int row, int column) const {
    float sum = 0;
    for (int step = 0; step < kSteps; ++step) {
      for (int k = 0; k < kDepth; ++k) sum += a[step][row][k] * b[step][k][column];
    }
    return sum;
  }
};

// The formulas of warpgroup.cuh's comments, from matrices to registers.
template <class T>
void take_a(const Matrices<T>& m, int step, uint32_t (&a)[4], uint32_t* metadata) {
  const int lane = threadIdx.x % 32;
  const int first = threadIdx.x / 32 * 16;
  for (int r = 0; r < 4; ++r) {
    const float* two =
        &m.compressed[step][first + lane / 4 + 8 * (r % 2)][2 * (lane % 4) + 8 * (r / 2)];
    T low, high;
    round_to(two[0], &low);
    round_to(two[1], &high);
    a[r] = low.bits | static_cast<uint32_t>(high.bits) << 16;
  }
  *metadata = 0xdeadbeefu;  // of lanes 2 and 3 of four: must not matter
  if (lane % 4 >= 2) return;
  *metadata = 0;
  for (int half = 0; half < 2; ++half) {
    for (int k = 0; k < 8; ++k) {
      const int told = m.index[step][first + lane / 4 + 8 * half][lane % 4 * 8 + k];
      *metadata |= static_cast<uint32_t>(told) << (16 * half + 2 * k);
    }
  }
}

template <class T>
__global__ void products(const Matrices<T>& m, const std::string& fault, float* out) {
  auto* shared = static_cast<unsigned char*>(dynamic_shared());
  const auto* from = reinterpret_cast<const unsigned char*>(m.pieces.data());
  const int thread = threadIdx.x;
  for (int at = thread * 16; at < kSteps * kStepBytes; at += kThreads * 16) {
    copy_async(shared + at, from + at, true);
  }
  commit_copies();
  if (fault != "wait_copies") wait_copies<0>();
  if (fault != "fence_products") fence_products();
  if (fault != "barrier") __syncthreads();

  float sums[kWarpgroupSums] = {};
  uint32_t a[kSteps][4];
  uint32_t metadata[kSteps];
  for (int step = 0; step < kSteps; ++step) take_a(m, step, a[step], &metadata[step]);
  if (fault == "falling metadata") metadata[0] = 0x11111111u;
  const int row_bytes = fault == "row step" ? kRowBytes - 16 : kRowBytes;
  const int column_bytes = fault == "column step" ? 128 : kColumnBytes;
  const int offset = fault == "start" ? 16 : fault == "out of bounds" ? kStepBytes : 0;
  for (int step = 0; step < kSteps; ++step) {
    uint64_t b = matrix_descriptor(shared + step * kStepBytes + offset, row_bytes, column_bytes);
    if (fault == "swizzle") b |= uint64_t{1} << 62;
    if (fault == "lanes differ" && thread % 32 == 5) b += 1;
    if (fault != "begin_products") begin_products();
    multiply_sparse_async<T>(sums, a[step], b, metadata[step]);
    if (fault != "commit_products") commit_products();
  }
  if (fault == "registers") a[1][0] ^= 1;
  if (fault == "shared memory") copy_async(shared + thread * 16, from, true);
  if (fault == "wait of one") {
    wait_products<1>();
  } else if (fault != "wait_products") {
    wait_products<0>();
  }
  for (int i = 0; i < kWarpgroupSums; ++i) {
    const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
    const int column = 8 * (i / 4) + 2 * (thread % 4) + i % 2;
    out[row * kWarpgroupColumns + column] = sums[i];
  }
}

template <class T>
int wrong(const std::string& fault, uint64_t seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  const Matrices<T> m(random);
  std::vector<float> out(kRows * kWarpgroupColumns);
  emu::launch({dim3(1), dim3(kThreads), kSteps * kStepBytes, seed},
              [&] { products(m, fault, out.data()); });
  int count = 0;
  for (int i = 0; i < kRows * kWarpgroupColumns; ++i) {
    count += out[i] == m.product(i / kWarpgroupColumns, i % kWarpgroupColumns) ? 0 : 1;
  }
  return count;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const uint64_t seed = std::strtoull(argv[2], nullptr, 10);
  try {
    const int count = wrong<Half>(argv[1], seed) + wrong<BFloat16>(argv[1], seed);
    std::printf("%d of %d sums are wrong\n", count, 2 * kRows * kWarpgroupColumns);
    return count == 0 ? 0 : 1;
  } catch (const emu::KernelError& error) {
    std::printf("%s\n", error.what());
    return 3;
  }
}
