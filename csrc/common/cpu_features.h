// SPDX-License-Identifier: Apache-2.0
// Which instruction set the CPU kernels use. Chosen once: the best that was built and that this
// processor and system support, unless GANSPARSE_SIMD=plain|avx2|avx512 asks for a lower one.
#pragma once

#include <string>
#include <vector>

namespace gansparse {

enum class SimdLevel { kPlain = 0, kAvx2 = 1, kAvx512 = 2 };

const char* name_of(SimdLevel level);

// The levels that were built and that run here, lowest first.
std::vector<SimdLevel> available_simd_levels();

// The level in use.
SimdLevel simd_level();

// Whether the processor multiplies bfloat16 in instructions of its own (AVX512_BF16).
bool native_bf16();

// For tests and benchmarks: use `name` from now on, in every thread.
void set_simd_level(const std::string& name);

}  // namespace gansparse
