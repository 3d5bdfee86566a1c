// SPDX-License-Identifier: Apache-2.0
// Kernels with one fault each, and their sound twins. Argument 1 names the kernel, 2 is the seed.
// A KernelError is printed and gives status 3; the sanitizers have statuses of their own.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "common/async_copy.cuh"
#include "common/moments.cuh"
#include "common/reduce.cuh"
#include "common/tensor_core.cuh"
#include "common/vec.cuh"

using namespace gansparse;
namespace emu = gansparse::emulator;

constexpr int kThreads = 64;

template <bool kSound>
__global__ void missing_barrier(const float* in, float* out) {
  __shared__ float tile[kThreads];
  const int t = threadIdx.x;
  tile[t] = in[t];
  if (kSound) __syncthreads();
  out[t] = tile[kThreads - 1 - t];
}

// The tile is written again while others may still read it.
template <bool kSound>
__global__ void missing_second_barrier(const float* in, float* out) {
  __shared__ float tile[kThreads];
  const int t = threadIdx.x;
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    tile[t] = in[t] + static_cast<float>(round);
    __syncthreads();
    sum += tile[(t + 1) % kThreads];
    if (kSound) __syncthreads();
  }
  out[t] = sum;
}

template <bool kSound>
__global__ void missing_warp_barrier(const float* in, float* out) {
  __shared__ float tile[kThreads];
  const int t = threadIdx.x;
  tile[t] = in[t];
  if (kSound) __syncwarp();
  out[t] = tile[t ^ 1];
}

template <bool kSound>
__global__ void plain_counter(int* counter) {
  if (kSound) {
    atomicAdd(counter, 1);
  } else {
    *counter += 1;
  }
}

template <bool kSound>
__global__ void dynamic_shared_race(const float* in, float* out) {
  float* tile = static_cast<float*>(emu::dynamic_shared_memory());
  const int t = threadIdx.x;
  tile[t] = in[t];
  if (kSound) __syncthreads();
  out[t] = tile[kThreads - 1 - t];
}

template <bool kSound>
__global__ void global_out_of_bounds(const float* in, float* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (kSound ? i < n : i <= n) out[i] = in[i];
}

template <bool kSound>
__global__ void shared_out_of_bounds(const float* in, float* out) {
  __shared__ float tile[kThreads];
  const int t = threadIdx.x;
  tile[t] = in[t];
  __syncthreads();
  out[t] = tile[kSound ? (t + 1) % kThreads : t + 1];
}

template <bool kSound>
__global__ void dynamic_shared_out_of_bounds(float* out) {
  float* tile = static_cast<float*>(emu::dynamic_shared_memory());
  tile[threadIdx.x + (kSound ? 0 : 1)] = 1.0f;
  out[threadIdx.x] = 1.0f;
}

template <bool kSound>
__global__ void misaligned_vector(const float* in, float* out) {
  const float* from = in + (kSound ? 0 : 1);
  if (threadIdx.x == 0) store<2>(out, load<2>(from));
}

template <bool kSound>
__global__ void exit_before_barrier(float* out) {
  if (!kSound && threadIdx.x < 10) return;
  __syncthreads();
  out[threadIdx.x] = 1.0f;
}

template <bool kSound>
__global__ void barrier_in_a_branch(float* out) {
  if (!kSound && threadIdx.x < 10) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1.0f;
}

template <bool kSound>
__global__ void shuffle_in_a_branch(const float* in, float* out) {
  float value = in[threadIdx.x];
  if (kSound || threadIdx.x % 32 < 16) value = __shfl_xor_sync(kFullWarp, value, 1);
  out[threadIdx.x] = value;
}

template <bool kSound>
__global__ void shuffle_outside_its_mask(const float* in, float* out) {
  float value = in[threadIdx.x];
  const unsigned half = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  value = __shfl_xor_sync(half, value, kSound ? 8 : 16);
  out[threadIdx.x] = value;
}

template <bool kSound>
__global__ void different_warp_operations(const float* in, float* out) {
  float value = in[threadIdx.x];
  if (kSound || threadIdx.x % 2 == 0) {
    value = __shfl_xor_sync(kFullWarp, value, 1);
  } else {
    __syncwarp();
  }
  out[threadIdx.x] = value;
}

// A thread's wait is about its own copies only.
template <bool kSound>
__global__ void missing_barrier_after_copies(const float* in, float* out) {
  float* tile = static_cast<float*>(dynamic_shared());
  const int t = threadIdx.x;
  if (t % 4 == 0) copy_async(tile + t, in + t, true);
  commit_copies();
  wait_copies<0>();
  if (kSound) __syncthreads();
  out[t] = tile[kThreads - 1 - t];
}

template <bool kSound>
__global__ void missing_barrier_after_word_copies(const float* in, float* out) {
  float* tile = static_cast<float*>(dynamic_shared());
  const int t = threadIdx.x;
  copy_async_word(tile + t, in + t);
  commit_copies();
  wait_copies<0>();
  if (kSound) __syncthreads();
  out[t] = tile[kThreads - 1 - t];
}

// The buffer is asked for again while others may still read it.
template <bool kSound>
__global__ void copies_asked_for_too_early(const float* in, float* out) {
  float* tile = static_cast<float*>(dynamic_shared());
  const int t = threadIdx.x;
  if (t % 4 == 0) copy_async(tile + t, in + t, true);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  out[t] = tile[kThreads - 1 - t];
  if (kSound) __syncthreads();
  if (t % 4 == 0) copy_async(tile + t, in + t, true);
  commit_copies();
}

template <bool kSound>
__global__ void misaligned_matrix(const float* in, float* out) {
  uint32_t four[4];
  load_matrices(four, in + (kSound ? 0 : 1));
  out[threadIdx.x] = static_cast<float>(four[0]);
}

// A product is all lanes' work.
template <bool kSound>
__global__ void product_in_a_branch(float* out) {
  double c[4] = {};
  const double a[2] = {};
  if (kSound || threadIdx.x % 32 < 16) multiply(c, a, 0);
  out[threadIdx.x] = static_cast<float>(c[0]);
}

template <bool kSound>
__global__ void metadata_falls(float* out) {
  float c[4] = {};
  const uint32_t a[4] = {};
  const uint32_t b[4] = {};
  multiply_sparse<Half, 0>(c, a, b, kSound ? 0x44444444u : 0x11111111u);
  out[threadIdx.x] = c[0];
}

// Two warps' moments, which one of them joins.
template <bool kSound>
__global__ void missing_barrier_of_moments(const float* in, float* out) {
  __shared__ float halves[2][3][1];
  const int t = threadIdx.x;
  const float mean = warp_sum(in[t]) / 32;
  const float distances = warp_sum((in[t] - mean) * (in[t] - mean));
  if (t % 32 == 0) store_moments(&halves[t / 32][0][0], 1, 0, {32, mean, distances});
  if (kSound) __syncthreads();
  if (t < 32) out[t] = joined(&halves[0][0][0], 2, 1, 0).distances;
}

__global__ void reductions(const float* in, float* out) {
  out[threadIdx.x] = block_sum<kThreads>(in[threadIdx.x]) + warp_sum(1.0f);
}

template <bool kSound>
bool run(const std::string& name, uint64_t seed) {
  std::vector<float> in(kThreads), out(kThreads);
  for (int i = 0; i < kThreads; ++i) in[i] = static_cast<float>(i);
  int counter = 0;
  const float* i = in.data();
  float* o = out.data();
  const auto go = [&](const std::function<void()>& kernel, unsigned blocks = 1) {
    emu::launch({dim3(blocks), dim3(kThreads), kThreads * sizeof(float), seed}, kernel);
    return true;
  };
  // clang-format off
  if (name == "missing_barrier") return go([=] { missing_barrier<kSound>(i, o); }, 2);
  if (name == "missing_second_barrier") return go([=] { missing_second_barrier<kSound>(i, o); });
  if (name == "missing_warp_barrier") return go([=] { missing_warp_barrier<kSound>(i, o); });
  if (name == "plain_counter") return go([&] { plain_counter<kSound>(&counter); });
  if (name == "dynamic_shared_race") return go([=] { dynamic_shared_race<kSound>(i, o); }, 2);
  if (name == "global_out_of_bounds") return go([=] { global_out_of_bounds<kSound>(i, o, kThreads); }, 2);
  if (name == "shared_out_of_bounds") return go([=] { shared_out_of_bounds<kSound>(i, o); });
  if (name == "dynamic_shared_out_of_bounds") return go([=] { dynamic_shared_out_of_bounds<kSound>(o); });
  if (name == "misaligned_vector") return go([=] { misaligned_vector<kSound>(i, o); });
  if (name == "exit_before_barrier") return go([=] { exit_before_barrier<kSound>(o); });
  if (name == "barrier_in_a_branch") return go([=] { barrier_in_a_branch<kSound>(o); });
  if (name == "shuffle_in_a_branch") return go([=] { shuffle_in_a_branch<kSound>(i, o); });
  if (name == "shuffle_outside_its_mask") return go([=] { shuffle_outside_its_mask<kSound>(i, o); });
  if (name == "different_warp_operations") return go([=] { different_warp_operations<kSound>(i, o); });
  if (name == "missing_barrier_after_copies") return go([=] { missing_barrier_after_copies<kSound>(i, o); });
  if (name == "missing_barrier_after_word_copies") return go([=] { missing_barrier_after_word_copies<kSound>(i, o); });
  if (name == "copies_asked_for_too_early") return go([=] { copies_asked_for_too_early<kSound>(i, o); });
  if (name == "misaligned_matrix") return go([=] { misaligned_matrix<kSound>(i, o); });
  if (name == "product_in_a_branch") return go([=] { product_in_a_branch<kSound>(o); });
  if (name == "metadata_falls") return go([=] { metadata_falls<kSound>(o); });
  if (name == "missing_barrier_of_moments") return go([=] { missing_barrier_of_moments<kSound>(i, o); });
  // clang-format on
  if (name == "reductions") {
    go([=] { reductions(i, o); });
    for (float x : out) {
      if (x != kThreads * (kThreads - 1) / 2 + 32) return false;
    }
    return true;
  }
  return false;
}

// broken_driver NAME broken|sound SEED
int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const uint64_t seed = std::strtoull(argv[3], nullptr, 10);
  try {
    const bool done =
        std::string(argv[2]) == "sound" ? run<true>(argv[1], seed) : run<false>(argv[1], seed);
    return done ? 0 : 2;
  } catch (const emu::KernelError& error) {
    std::printf("%s\n", error.what());
    return 3;
  }
}
