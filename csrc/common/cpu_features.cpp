// SPDX-License-Identifier: Apache-2.0
#include "common/cpu_features.h"

#include <atomic>
#include <cstdlib>
#ifdef GANSPARSE_WITH_X86
#include <cpuid.h>
#endif

#include "common/check.h"

namespace gansparse {
namespace {

constexpr int kUnset = -1;
std::atomic<int> level_in_use{kUnset};

SimdLevel parse_available(const std::string& name, const std::string& source) {
  std::string names;
  for (SimdLevel level : available_simd_levels()) {
    if (name == name_of(level)) return level;
    names += (names.empty() ? "" : " or ") + std::string(name_of(level));
  }
  throw InputError(source + " must be " + names + " on this machine, got '" + name + "'");
}

SimdLevel initial_level() {
  const char* wish = std::getenv("GANSPARSE_SIMD");
  if (wish == nullptr || *wish == '\0') return available_simd_levels().back();
  return parse_available(wish, "GANSPARSE_SIMD");
}

}  // namespace

const char* name_of(SimdLevel level) {
  switch (level) {
    case SimdLevel::kPlain:
      return "plain";
    case SimdLevel::kAvx2:
      return "avx2";
    case SimdLevel::kAvx512:
      return "avx512";
  }
  return "unknown";
}

std::vector<SimdLevel> available_simd_levels() {
  std::vector<SimdLevel> levels{SimdLevel::kPlain};
#ifdef GANSPARSE_WITH_X86
  // __builtin_cpu_supports also asks whether the operating system saves the wide registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    levels.push_back(SimdLevel::kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      levels.push_back(SimdLevel::kAvx512);
    }
  }
#endif
  return levels;
}

SimdLevel simd_level() {
  int level = level_in_use.load(std::memory_order_relaxed);
  if (level == kUnset) {
    level = static_cast<int>(initial_level());
    level_in_use.store(level, std::memory_order_relaxed);
  }
  return static_cast<SimdLevel>(level);
}

bool native_bf16() {
#ifdef GANSPARSE_WITH_X86
  // By number: not every compiler that can build this has a name for it.
  constexpr unsigned kLeaf = 7, kSubleaf = 1, kAvx512Bf16 = 1u << 5;  // of EAX
  unsigned a = 0, b = 0, c = 0, d = 0;
  return available_simd_levels().back() == SimdLevel::kAvx512 &&
         __get_cpuid_count(kLeaf, kSubleaf, &a, &b, &c, &d) != 0 && (a & kAvx512Bf16) != 0;
#else
  return false;
#endif
}

void set_simd_level(const std::string& name) {
  level_in_use.store(static_cast<int>(parse_available(name, "set_simd_level: name")),
                     std::memory_order_relaxed);
}

}  // namespace gansparse
