// SPDX-License-Identifier: Apache-2.0
// Mean and variance of many numbers, made of those of their parts: how many there are, their mean,
// and the sum of their squared distances from it, [parts, 3, channels] float. What a large mean
// costs is its own rounding, squared; sums of squares would lose the variance in it.
#pragma once

#include "common/cuda_language.cuh"

namespace gansparse {

struct Moments {
  float count, mean, distances;
};

__device__ __forceinline__ void store_moments(float* to, int64_t channels, int64_t channel,
                                              const Moments& moments) {
  to[channel] = moments.count;
  to[channels + channel] = moments.mean;
  to[2 * channels + channel] = moments.distances;
}

// Of all parts, in order (Chan et al. 1983, eq. 1.5). A part has as many numbers of each channel,
// so that all threads read the first one's count. None at all: zeros.
__device__ __forceinline__ Moments joined(const float* from, int parts, int64_t channels,
                                          int64_t channel) {
  Moments all{};
  float total = 0;
#pragma unroll 8
  for (int part = 0; part < parts; ++part) {
    const float* of = from + part * 3 * channels;
    all.count += of[0];
    total += of[0] * of[channels + channel];
  }
  if (all.count > 0) all.mean = total / all.count;
#pragma unroll 8
  for (int part = 0; part < parts; ++part) {
    const float* of = from + part * 3 * channels;
    const float apart = of[channels + channel] - all.mean;
    all.distances += of[2 * channels + channel] + of[0] * apart * apart;
  }
  return all;
}

}  // namespace gansparse
