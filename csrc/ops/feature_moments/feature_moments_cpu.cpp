// SPDX-License-Identifier: Apache-2.0
// The CPU op: a symmetric rank-k update of the lower triangle, blocked for the caches.
//
//   chunk   kDepth rows of features, packed once as float64: what one pass over `second` adds
//   block   kBlock x kBlock entries of `second`, the unit of sharing among threads; its two strips
//           of the packed chunk (2 · kBlock · kDepth · 8 bytes = 786 KB) stay in the second cache
//   tile    rows x columns entries, in registers (feature_moments.h: TileKernel)
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "common/cpu_features.h"
#include "common/half.h"
#include "common/parallel.h"
#include "ops/feature_moments/feature_moments.h"

namespace gansparse::feature_moments {
namespace {

constexpr int64_t kDepth = 256;
constexpr int64_t kBlock = 192;
constexpr int kMostColumns = 24;
constexpr int kMostRows = 8;
constexpr size_t kCacheLine = 64;

static_assert(kBlock % kMostColumns == 0, "a block is whole panels of 24, 12 and 4 columns");

// ---- The tile in plain C++ ----------------------------------------------------------------------

constexpr int kPlainTile = 4;

void add_tile_plain(const double* a, const double* b, int64_t depth, double* out, int64_t stride) {
  double sum[kPlainTile][kPlainTile] = {};
  for (int64_t n = 0; n < depth; ++n, a += kPlainTile, b += kPlainTile) {
    for (int r = 0; r < kPlainTile; ++r) {
      for (int c = 0; c < kPlainTile; ++c) sum[r][c] += a[r] * b[c];
    }
  }
  for (int r = 0; r < kPlainTile; ++r) {
    for (int c = 0; c < kPlainTile; ++c) out[r * stride + c] += sum[r][c];
  }
}

TileKernel choose_tile_kernel() {
#ifdef GANSPARSE_WITH_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512:
      return tile_kernel_avx512();
    case SimdLevel::kAvx2:
      return tile_kernel_avx2();
    case SimdLevel::kPlain:
      break;
  }
#endif
  return {kPlainTile, kPlainTile, &add_tile_plain};
}

// ---- Packing ------------------------------------------------------------------------------------

// Features [begin, begin + count) of `depth` rows become one panel, padded with zeros; their
// deviations are added to the totals.
template <class T>
void pack_panel(const T* rows, const Problem& p, int64_t begin, int columns, int64_t depth,
                double* panel) {
  const int count = static_cast<int>(std::min<int64_t>(columns, p.width - begin));
  double shift[kMostColumns] = {};
  double sum[kMostColumns] = {};
  if (p.shift != nullptr) std::copy_n(p.shift + begin, count, shift);
  for (int64_t n = 0; n < depth; ++n, panel += columns) {
    const T* row = rows + n * p.width + begin;
    for (int c = 0; c < count; ++c) {
      const double deviation = to_float(row[c]) - shift[c];
      panel[c] = deviation;
      sum[c] += deviation;
    }
    std::fill(panel + count, panel + columns, 0.0);
  }
  for (int c = 0; c < count; ++c) p.total[begin + c] += sum[c];
}

// ---- Blocks -------------------------------------------------------------------------------------

// A packed chunk and where its tiles go.
struct Chunk {
  TileKernel tile;
  const double* packed;  // [panels][depth][columns]
  int64_t depth;
  double* second;  // [F, F]
  int64_t width;   // F

  const double* feature(int64_t f) const {  // n = 0 of feature f
    return packed + f / tile.columns * depth * tile.columns + f % tile.columns;
  }

  // The tile at [i, j], which crosses the diagonal or the end of the matrix: through a buffer.
  void add_partial_tile(int64_t i, int64_t j) const {
    double buffer[kMostRows * kMostColumns] = {};
    tile.add(feature(i), feature(j), depth, buffer, tile.columns);
    const int64_t rows = std::min<int64_t>(tile.rows, width - i);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t columns = std::min<int64_t>(tile.columns, i + r - j + 1);
      for (int64_t c = 0; c < columns; ++c) {
        second[(i + r) * width + j + c] += buffer[r * tile.columns + c];
      }
    }
  }

  // Entries [i0, i0 + kBlock) x [j0, j0 + kBlock) on or below the diagonal.
  void add_block(int64_t i0, int64_t j0) const {
    const int64_t i_end = std::min(i0 + kBlock, width);
    for (int64_t i = i0; i < i_end; i += tile.rows) {
      const int64_t j_end = std::min(j0 + kBlock, i + tile.rows);
      for (int64_t j = j0; j < j_end; j += tile.columns) {
        const bool below_diagonal = j + tile.columns <= i + 1;
        if (below_diagonal && i + tile.rows <= width) {
          tile.add(feature(i), feature(j), depth, second + i * width + j, width);
        } else {
          add_partial_tile(i, j);
        }
      }
    }
  }
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

std::unique_ptr<double[], Free> allocate(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(double) + kCacheLine - 1) / kCacheLine *
                       kCacheLine;  // aligned_alloc wants whole multiples
  void* memory = std::aligned_alloc(kCacheLine, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return std::unique_ptr<double[], Free>(static_cast<double*>(memory));
}

template <class T>
void add_typed(const Problem& p) {
  const TileKernel tile = choose_tile_kernel();
  const int64_t panels = (p.width + tile.columns - 1) / tile.columns;
  const int64_t strips = (p.width + kBlock - 1) / kBlock;
  const auto packed = allocate(panels * tile.columns * std::min(p.rows, kDepth));

  for (int64_t done = 0; done < p.rows; done += kDepth) {
    const int64_t depth = std::min(kDepth, p.rows - done);
    const T* rows = static_cast<const T*>(p.features) + done * p.width;
    // A thread is worth waking for some 10,000 elements packed, or 100,000 products.
    const int64_t panel_grain = 1 + 10'000 / (depth * tile.columns);
    parallel_for(panels, panel_grain, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        pack_panel(rows, p, panel * tile.columns, tile.columns, depth,
                   packed.get() + panel * depth * tile.columns);
      }
    });

    const Chunk chunk{tile, packed.get(), depth, p.second, p.width};
    const int64_t block_grain = 1 + 100'000 / (depth * kBlock * kBlock);
    parallel_for(strips * (strips + 1) / 2, block_grain, [&](int64_t begin, int64_t end) {
      int64_t index = 0;  // of the block, row by row of the triangle
      for (int64_t i = 0; i < strips && index < end; ++i) {
        for (int64_t j = 0; j <= i; ++j, ++index) {
          if (index >= begin && index < end) chunk.add_block(i * kBlock, j * kBlock);
        }
      }
    });
  }
}

}  // namespace

void add_cpu(const Problem& problem) {
  switch (problem.type) {
    case FeatureType::kFloat16:
      return add_typed<Half>(problem);
    case FeatureType::kBFloat16:
      return add_typed<BFloat16>(problem);
    case FeatureType::kFloat32:
      return add_typed<float>(problem);
    case FeatureType::kFloat64:
      return add_typed<double>(problem);
  }
}

}  // namespace gansparse::feature_moments
