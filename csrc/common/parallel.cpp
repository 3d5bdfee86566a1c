// SPDX-License-Identifier: Apache-2.0
#include "common/parallel.h"

#include <dlfcn.h>
#include <link.h>

#include <atomic>
#include <cstring>

namespace gansparse {
namespace {

// libgomp's entry points, which LLVM's and Intel's runtimes offer under the same names.
struct OpenMp {
  void (*parallel)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
  int (*max_threads)();
  int (*thread_num)();
  int (*num_threads)();
};

bool bind(void* scope, OpenMp* out) {
  const auto find = [scope](const char* name, auto* function) {
    void* symbol = dlsym(scope, name);
    std::memcpy(function, &symbol, sizeof symbol);  // the POSIX way from object to function pointer
    return symbol != nullptr;
  };
  return find("GOMP_parallel", &out->parallel) && find("omp_get_max_threads", &out->max_threads) &&
         find("omp_get_thread_num", &out->thread_num) &&
         find("omp_get_num_threads", &out->num_threads);
}

// The file that torch's CPU library was loaded from, or "": distributions put a version behind its
// name (libtorch_cpu.so.2.6), so the plain name does not find it everywhere.
std::string torchs_library() {
  std::string path;
  dl_iterate_phdr(
      [](dl_phdr_info* library, std::size_t, void* found) {
        if (std::strstr(library->dlpi_name, "/libtorch_cpu.so") == nullptr) return 0;
        *static_cast<std::string*>(found) = library->dlpi_name;
        return 1;
      },
      &path);
  return path;
}

// The order in which the dynamic linker resolves torch's own calls: the global scope first (where a
// preloaded runtime is), then what libtorch_cpu.so depends on.
bool bind_torchs_runtime(OpenMp* out) {
  if (bind(RTLD_DEFAULT, out)) return true;
  const std::string path = torchs_library();
  void* torch = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (torch == nullptr) return false;
  const bool found = bind(torch, out);
  dlclose(torch);  // undoes only this dlopen's count: torch itself stays
  return found;
}

// Null until a runtime is there: torch may be imported after us, so absence is not remembered.
const OpenMp* runtime() {
  static std::atomic<const OpenMp*> ready{nullptr};
  if (const OpenMp* known = ready.load(std::memory_order_acquire)) return known;
  OpenMp found{};
  if (!bind_torchs_runtime(&found)) return nullptr;
  static const OpenMp kept = found;
  ready.store(&kept, std::memory_order_release);
  return &kept;
}

}  // namespace

int max_threads() {
  const OpenMp* omp = runtime();
  return omp ? omp->max_threads() : 1;
}

std::string openmp_runtime() {
  const OpenMp* omp = runtime();
  if (omp == nullptr) return "";
  void* address = nullptr;
  std::memcpy(&address, &omp->parallel, sizeof address);
  Dl_info info{};
  return dladdr(address, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "unknown";
}

namespace detail {

void run_region(int threads, Region region, void* context) {
  struct Call {
    const OpenMp* omp;
    Region region;
    void* context;
  } call{runtime(), region, context};
  // The runtime may grant fewer threads than asked for, so the share is computed inside.
  call.omp->parallel(
      [](void* raw) {
        const auto& c = *static_cast<const Call*>(raw);
        c.region(c.omp->thread_num(), c.omp->num_threads(), c.context);
      },
      &call, static_cast<unsigned>(threads), 0);
}

}  // namespace detail
}  // namespace gansparse
