// SPDX-License-Identifier: Apache-2.0
// The operations on a warp's matrices against plain products of plain matrices, and asynchronous
// copies against what PTX says of them. Prints what is wrong; status 0 means nothing. Argument 1 is
// the seed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "common/async_copy.cuh"
#include "common/tensor_core.cuh"

using namespace gansparse;
namespace emu = gansparse::emulator;

int failures = 0;

void expect(bool holds, const char* what, int thread) {
  if (holds) return;
  std::printf("%s is wrong in thread %d\n", what, thread);
  ++failures;
}
#define EXPECT(condition) expect(condition, #condition, thread)

// Whole numbers of few bits: their products and sums are exact in any order.
template <class T>
struct Matrices {
  float a[16][32] = {};  // for the sparse product two of each four, else 16 columns
  float b[32][8];
  float compressed[16][16];
  int index[16][16];
  alignas(16) T b_by_column[8][40];  // as pixels lie, padded
  alignas(16) T b_by_row[32][8];

  explicit Matrices(std::mt19937& random, bool sparse) {
    std::uniform_int_distribution<int> number(-8, 8);
    for (auto& row : b) {
      for (float& x : row) x = static_cast<float>(number(random));
    }
    constexpr int kPairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        if (k % 2 == 0) std::copy_n(kPairs[random() % 6], 2, &index[row][k]);
        compressed[row][k] = static_cast<float>(number(random));
        a[row][sparse ? k / 2 * 4 + index[row][k] : k] = compressed[row][k];
      }
    }
    for (int column = 0; column < 8; ++column) {
      for (int k = 0; k < 32; ++k) {
        round_to(b[k][column], &b_by_column[column][k]);
        round_to(b[k][column], &b_by_row[k][column]);
      }
    }
  }

  double product(int row, int column, int depth) const {
    double sum = 0;
    for (int k = 0; k < depth; ++k) sum += double{a[row][k]} * b[k][column];
    return sum;
  }
};

template <class T>
uint32_t two(float low, float high) {
  T l, h;
  round_to(low, &l);
  round_to(high, &h);
  return l.bits | static_cast<uint32_t>(h.bits) << 16;
}

// The formulas of tensor_core.cuh's comments, from matrices to registers.
template <class T>
void take_a(const Matrices<T>& m, int lane, uint32_t (&a)[4]) {
  for (int r = 0; r < 4; ++r) {
    const int row = lane / 4 + 8 * (r % 2);
    const int column = 2 * (lane % 4) + 8 * (r / 2);
    a[r] = two<T>(m.compressed[row][column], m.compressed[row][column + 1]);
  }
}

template <class T>
uint32_t take_metadata(const Matrices<T>& m, int lane, int selector) {
  if (lane % 4 / 2 != selector) return 0xdeadbeefu;  // of the other selector: must not matter
  uint32_t word = 0;
  for (int row = lane / 4; row < 16; row += 8) {
    for (int k = lane % 2 * 8; k < lane % 2 * 8 + 8; ++k) {
      word |= static_cast<uint32_t>(m.index[row][k]) << (16 * (row / 8) + 2 * (k % 8));
    }
  }
  return word;
}

template <class T, int kSelector>
__global__ void products(const Matrices<T>& dense, const Matrices<T>& sparse) {
  const int thread = threadIdx.x;
  uint32_t a[4];
  uint32_t b[4];
  float c[4] = {1, 2, 3, 4};

  take_a(dense, thread, a);
  load_matrices(b, &dense.b_by_column[thread % 8][thread / 8 * 8]);
  for (int r = 0; r < 4; ++r) {
    const int k = 2 * (thread % 4) + 8 * r;
    EXPECT(b[r] == two<T>(dense.b[k][thread / 4], dense.b[k + 1][thread / 4]));
  }
  uint32_t transposed[4];
  load_matrices_transposed(transposed, dense.b_by_row[thread]);
  for (int r = 0; r < 4; ++r) EXPECT(transposed[r] == b[r]);
  multiply<T>(c, a, b);
  for (int i = 0; i < 4; ++i) {
    const int row = thread / 4 + i / 2 * 8;
    const int column = 2 * (thread % 4) + i % 2;
    EXPECT(c[i] == static_cast<float>(i + 1 + dense.product(row, column, 16)));
  }

  float d[4] = {};
  take_a(sparse, thread, a);
  load_matrices(b, &sparse.b_by_column[thread % 8][thread / 8 * 8]);
  multiply_sparse<T, kSelector>(d, a, b, take_metadata(sparse, thread, kSelector));
  for (int i = 0; i < 4; ++i) {
    const int row = thread / 4 + i / 2 * 8;
    const int column = 2 * (thread % 4) + i % 2;
    EXPECT(d[i] == static_cast<float>(sparse.product(row, column, 32)));
  }
}

// Numbers of 40 bits more than those of the matrices, which float would round away.
__global__ void products_of_doubles(const Matrices<Half>& m) {
  const int thread = threadIdx.x;
  const double scale = 1 + 0x1p-40;
  double c[4] = {1, 2, 3, 4};
  double a[2];
  for (int r = 0; r < 2; ++r) a[r] = scale * m.a[thread / 4 + 8 * r][thread % 4];
  multiply(c, a, m.b[thread % 4][thread / 4]);
  for (int i = 0; i < 4; ++i) {
    const int row = thread / 4 + i / 2 * 8;
    const int column = 2 * (thread % 4) + i % 2;
    EXPECT(c[i] == i + 1 + scale * m.product(row, column, 4));
  }
}

__global__ void copies(const float* from) {
  const int thread = threadIdx.x;
  float* mine = static_cast<float*>(dynamic_shared()) + 16 * thread;
  copy_async(mine, from, true);
  copy_async_word(mine + 13, from + 3);
  commit_copies();
  copy_async(mine + 4, from + 4, true);
  commit_copies();
  copy_async(mine + 8, from, false);
  copy_async_word(mine + 14, from + 5);
  commit_copies();
  EXPECT(std::isnan(mine[0]) && std::isnan(mine[4]) &&
         std::isnan(mine[13]));  // nothing needs be there yet
  wait_copies<2>();
  EXPECT(mine[0] == from[0] && mine[3] == from[3]);
  EXPECT(mine[13] == from[3] && std::isnan(mine[14]));
  EXPECT(std::isnan(mine[4]) && std::isnan(mine[8]));
  commit_copies();  // an empty group counts
  wait_copies<2>();
  EXPECT(mine[7] == from[7] && std::isnan(mine[11]));
  wait_copies<0>();
  EXPECT(mine[8] == 0 && mine[11] == 0 && mine[14] == from[5]);
  EXPECT(std::isnan(mine[12]) && std::isnan(mine[15]));  // a word's neighbours are left alone
}

template <class T>
void check(uint64_t seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  const Matrices<T> dense(random, false);
  const Matrices<T> sparse(random, true);
  emu::launch({dim3(1), dim3(32), 0, seed}, [&] { products<T, 0>(dense, sparse); });
  emu::launch({dim3(1), dim3(32), 0, seed}, [&] { products<T, 1>(dense, sparse); });
}

int main(int argc, char** argv) {
  const uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
  check<Half>(seed);
  check<BFloat16>(seed);
  std::mt19937 random(static_cast<unsigned>(seed));
  const Matrices<Half> dense(random, false);
  emu::launch({dim3(1), dim3(32), 0, seed}, [&] { products_of_doubles(dense); });
  alignas(16) float from[8];
  for (int i = 0; i < 8; ++i) from[i] = static_cast<float>(i + 1);
  const float* array = from;
  emu::launch({dim3(2), dim3(64), 64 * 16 * sizeof(float), seed}, [=] { copies(array); });
  return failures == 0 ? 0 : 1;
}
