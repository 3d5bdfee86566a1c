// SPDX-License-Identifier: Apache-2.0
// The CPU's masks: one tensor after another, its elements shared evenly among the threads.
#include <algorithm>
#include <array>
#include <vector>

#include "common/parallel.h"
#include "ops/mask_update/mask_update.h"

namespace gansparse::mask_update {
namespace {

// The unit of sharing: a share's ties are counted chunk by chunk, so the result does not depend on
// who counts them. Eight of them are worth waking a thread for.
constexpr int64_t kChunk = 16384;
constexpr int64_t kGrainChunks = 8;

using Histogram = std::array<int64_t, kBuckets>;

template <class T>
class Selection {
 public:
  using Key = KeyOf<T>;

  Selection(const Item& item, bool magnitude, bool monotone)
      : item_(item),
        scores_(static_cast<const T*>(item.scores)),
        chunks_((item.numel + kChunk - 1) / kChunk),
        magnitude_(magnitude),
        monotone_(monotone) {}

  void update() {
    if (item_.prune == 0 || item_.prune == item_.numel) {
      std::fill_n(item_.mask, item_.numel, item_.prune == 0 ? uint8_t{1} : uint8_t{0});
      return;
    }
    int64_t left = item_.prune;  // how many of the chosen bucket's keys go
    const int bucket = choose_bucket(&left);
    std::vector<Key> keys = keys_of(bucket);
    const auto at = keys.begin() + (left - 1);
    std::nth_element(keys.begin(), at, keys.end());
    threshold_ = *at;
    const auto is_below = [this](Key k) { return k < threshold_; };
    left -= std::count_if(keys.begin(), keys.end(), is_below);
    const int64_t ties = std::count(keys.begin(), keys.end(), threshold_);
    ties == left ? write() : write_some(left);
  }

 private:
  // Without a branch: masks are random.
  Key key(int64_t i) const {
    const Key k = key_of(scores_[i], magnitude_);
    return monotone_ ? k & (Key(0) - Key(item_.mask[i] != 0)) : k;
  }

  template <class Body>
  void for_chunks(const Body& body) const {  // body(chunk, first element, last + 1)
    parallel_for(chunks_, kGrainChunks, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        body(c, c * kChunk, std::min((c + 1) * kChunk, item_.numel));
      }
    });
  }

  // The bucket of the highest digit in which the threshold lies; *left becomes how many of its keys
  // go.
  int choose_bucket(int64_t* left) const {
    Histogram total{};
    parallel_for(chunks_, kGrainChunks, [&](int64_t begin, int64_t end) {
      std::array<Histogram, 2> mine{};  // in turn: equal neighbours need not wait for each other
      for (int64_t i = begin * kChunk; i < std::min(end * kChunk, item_.numel); ++i) {
        ++mine[static_cast<size_t>(i % 2)][static_cast<size_t>(digit_of(key(i), 0))];
      }
      for (size_t b = 0; b < kBuckets; ++b) {
        __atomic_fetch_add(&total[b], mine[0][b] + mine[1][b], __ATOMIC_RELAXED);
      }
    });
    size_t bucket = 0;
    while (*left > total[bucket]) *left -= total[bucket++];
    return static_cast<int>(bucket);
  }

  // In no particular order.
  std::vector<Key> keys_of(int bucket) const {
    std::vector<std::vector<Key>> of_chunk(static_cast<size_t>(chunks_));
    for_chunks([&](int64_t c, int64_t begin, int64_t end) {
      std::array<Key, kChunk> found;
      size_t count = 0;
      for (int64_t i = begin; i < end; ++i) {
        found[count] = key(i);
        count += digit_of(found[count], 0) == bucket ? 1 : 0;
      }
      of_chunk[static_cast<size_t>(c)].assign(found.begin(), found.begin() + count);
    });
    std::vector<Key> all;
    for (const auto& keys : of_chunk) all.insert(all.end(), keys.begin(), keys.end());
    return all;
  }

  // Prunes what is not above the threshold.
  void write() const {
    for_chunks([&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) item_.mask[i] = key(i) > threshold_ ? 1 : 0;
    });
  }

  // Prunes what is below the threshold, and the first `ties` of what equals it.
  void write_some(int64_t ties) const {
    std::vector<int64_t> ties_before(static_cast<size_t>(chunks_) + 1, 0);
    for_chunks([&](int64_t c, int64_t begin, int64_t end) {
      int64_t found = 0;
      for (int64_t i = begin; i < end; ++i) found += key(i) == threshold_ ? 1 : 0;
      ties_before[static_cast<size_t>(c) + 1] = found;
    });
    for (size_t c = 0; c < static_cast<size_t>(chunks_); ++c) ties_before[c + 1] += ties_before[c];
    for_chunks([&](int64_t c, int64_t begin, int64_t end) {
      int64_t spare = ties - ties_before[static_cast<size_t>(c)];
      for (int64_t i = begin; i < end; ++i) {
        const Key k = key(i);
        const bool tie = k == threshold_;
        item_.mask[i] = k > threshold_ || (tie && spare <= 0) ? 1 : 0;
        spare -= tie ? 1 : 0;
      }
    });
  }

  const Item& item_;
  const T* scores_;
  int64_t chunks_;
  bool magnitude_;
  bool monotone_;
  Key threshold_ = 0;
};

}  // namespace

template <class T>
void update_cpu(const Item* items, int count, bool magnitude, bool monotone) {
  for (int i = 0; i < count; ++i) Selection<T>(items[i], magnitude, monotone).update();
}

template void update_cpu<float>(const Item*, int, bool, bool);
template void update_cpu<double>(const Item*, int, bool, bool);

}  // namespace gansparse::mask_update
