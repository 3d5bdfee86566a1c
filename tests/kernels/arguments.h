// SPDX-License-Identifier: Apache-2.0
// Arrays from and to a test in Python. A file is a sequence of records: a byte count (int64), then
// that many bytes. Every array has its own allocation of exactly its size, so that
// AddressSanitizer finds the first byte beyond it; an empty record is a null pointer.
// Beside the results, in RESULTS.kernels, stand the names of the kernels that were launched.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <set>
#include <string>
#include <typeinfo>
#include <vector>

#include "emulator/block.h"

class Arguments {
 public:
  explicit Arguments(const char* path) : file_(open(path, "rb")) {}
  ~Arguments() { std::fclose(file_); }
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  // The next record. Its memory lives as long as this object.
  template <class T>
  T* next(int64_t* count = nullptr) {
    int64_t bytes = 0;
    if (std::fread(&bytes, sizeof bytes, 1, file_) != 1) std::abort();
    if (count != nullptr) *count = bytes / static_cast<int64_t>(sizeof(T));
    if (bytes == 0) return nullptr;
    arrays_.emplace_back(std::malloc(static_cast<size_t>(bytes)), &std::free);
    if (std::fread(arrays_.back().get(), 1, static_cast<size_t>(bytes), file_) !=
        static_cast<size_t>(bytes)) {
      std::abort();
    }
    return static_cast<T*>(arrays_.back().get());
  }

  static std::FILE* open(const char* path, const char* mode) {
    std::FILE* file = std::fopen(path, mode);
    if (file == nullptr) std::abort();
    return file;
  }

 private:
  std::FILE* file_;
  std::vector<std::unique_ptr<void, void (*)(void*)>> arrays_;
};

// ---- Launches -----------------------------------------------------------------------------------

template <auto kKernel>
struct Named {};

// Those of this process: the mangled type Named<kernel>.
inline std::set<std::string>& launched() {
  static std::set<std::string> names;
  return names;
}

// A launch of this kernel in the emulator.
template <auto kKernel, class... A>
void emulate(const gansparse::emulator::Launch& launch, const A&... arguments) {
  launched().insert(typeid(Named<kKernel>).name());
  gansparse::emulator::launch(launch, [&] { kKernel(arguments...); });
}

// ---- Results ------------------------------------------------------------------------------------

class Results {
 public:
  explicit Results(const char* path) : path_(path), file_(Arguments::open(path, "wb")) {}
  ~Results() {
    std::fclose(file_);
    std::FILE* names = Arguments::open((path_ + ".kernels").c_str(), "w");
    for (const std::string& name : launched()) std::fprintf(names, "%s\n", name.c_str());
    std::fclose(names);
  }
  Results(const Results&) = delete;
  Results& operator=(const Results&) = delete;

  template <class T>
  void add(const T* array, int64_t count) {
    const int64_t bytes = array == nullptr ? 0 : count * static_cast<int64_t>(sizeof(T));
    std::fwrite(&bytes, sizeof bytes, 1, file_);
    if (bytes > 0) std::fwrite(array, 1, static_cast<size_t>(bytes), file_);
  }

 private:
  std::string path_;
  std::FILE* file_;
};
