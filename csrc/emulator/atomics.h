// SPDX-License-Identifier: Apache-2.0
// CUDA's atomic functions. They are real atomics, so ThreadSanitizer knows that they do not race
// with each other and still reports a plain access beside them. All are relaxed, as CUDA's are.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace gansparse::emulator {

// *address becomes change(*address) in one step; returns what it was.
template <class T, class Change>
T atomic_update(T* address, const Change& change) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics work on 32 and 64 bits");
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  Bits* cell = reinterpret_cast<Bits*>(address);
  Bits before = __atomic_load_n(cell, __ATOMIC_RELAXED);
  for (;;) {
    T value;
    std::memcpy(&value, &before, sizeof value);
    const T changed = change(value);
    Bits after;
    std::memcpy(&after, &changed, sizeof after);
    if (__atomic_compare_exchange_n(cell, &before, after, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
      return value;
    }
  }
}

}  // namespace gansparse::emulator

template <class T>
T atomicAdd(T* address, T value) {
  return gansparse::emulator::atomic_update(address, [=](T old) { return T(old + value); });
}
template <class T>
T atomicMax(T* address, T value) {
  return gansparse::emulator::atomic_update(address,
                                            [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, T value) {
  return gansparse::emulator::atomic_update(address,
                                            [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicAnd(T* address, T value) {
  return gansparse::emulator::atomic_update(address, [=](T old) { return T(old & value); });
}
template <class T>
T atomicOr(T* address, T value) {
  return gansparse::emulator::atomic_update(address, [=](T old) { return T(old | value); });
}
template <class T>
T atomicExch(T* address, T value) {
  return gansparse::emulator::atomic_update(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, T compare, T value) {
  return gansparse::emulator::atomic_update(address,
                                            [=](T old) { return old == compare ? value : old; });
}
