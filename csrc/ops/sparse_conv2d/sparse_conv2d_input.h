// SPDX-License-Identifier: Apache-2.0
// sparse_conv2d on the CPU: a tile's input, one channel after the other, from pictures into lanes.
// What `Simd` is: sparse_conv2d_simd.h.
#pragma once

#include <cstdint>

#include "ops/sparse_conv2d/sparse_conv2d.h"

namespace gansparse::sparse_conv2d {
namespace {

// Where a tile lies: its first picture and the first pixel of the grid, before upscaling.
struct Tile {
  int64_t n, y, x;
};

inline Tile tile_at(const Problem& p, const Plan& plan, int64_t index) {
  const int64_t x = index % plan.tiles_x, y = index / plan.tiles_x % plan.tiles_y;
  return {index / plan.tiles_x / plan.tiles_y * plan.lanes_n, y * plan.lanes_y * p.g.patch,
          x * plan.lanes_x * p.g.patch};
}

// From the tile's corner to the corners of its 16 patches, in order of u.
struct Corners {
  int64_t at[kLanes];

  Corners(const Plan& plan, int64_t picture, int64_t patch_row, int64_t patch_column) {
    for (int64_t u = 0; u < kLanes; ++u) {
      const int64_t x = u % plan.lanes_x, y = u / plan.lanes_x % plan.lanes_y;
      at[u] = u / plan.lanes_x / plan.lanes_y * picture + y * patch_row + x * patch_column;
    }
  }
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t clamp(int64_t a, int64_t most) { return a < 0 ? 0 : least(a, most); }

// The row or column of the input that index i of the padded one shows, or −1: zero.
inline int64_t source(int64_t i, int64_t size, Padding padding) {
  if (i >= 0 && i < size) return i;
  if (padding == Padding::kZeros) return -1;
  if (padding == Padding::kReplicate) return i < 0 ? 0 : size - 1;
  const int64_t mirrored = i < 0 ? -i : 2 * (size - 1) - i;
  return mirrored >= 0 && mirrored < size ? mirrored : -1;
}

// Copies n floats, the last vector of them overlapping the one before.
template <class Simd>
void copy(const float* from, int64_t n, float* to) {
  constexpr int64_t kWidth = Simd::kWidth;
  if (n < kWidth) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
    return;
  }
  for (int64_t i = 0; i < n - kWidth; i += kWidth) Simd::store(to + i, Simd::load(from + i));
  Simd::store(to + n - kWidth, Simd::load(from + n - kWidth));
}

// Copies a tile's part of channel c, padded; pixels of no use to any output become zero.
template <class Simd>
void stage(const Problem& p, const Plan& plan, const Tile& tile, int64_t c, float* staged) {
  const int64_t y0 = tile.y * p.g.stride - p.g.pad_h, x0 = tile.x * p.g.stride - p.g.pad_w;
  const int64_t begin = least(x0 < 0 ? -x0 : 0, plan.region_columns);
  const int64_t inside = least(plan.region_columns, p.width - x0);
  const int64_t end = inside < begin ? begin : inside;
  const bool one_vector = p.g.padding == Padding::kZeros && plan.region_columns <= Simd::kWidth;
  const auto none = Simd::mask(0, 0);
  const auto shown = one_vector ? Simd::mask(static_cast<int>(begin), static_cast<int>(end)) : none;
  for (int64_t n = tile.n; n < tile.n + plan.lanes_n; ++n) {
    const float* plane = p.input + (n * p.g.in_channels + c) * p.height * p.width;
    for (int64_t i = 0; i < plan.region_rows; ++i, staged += plan.region_pitch) {
      const int64_t y = n < p.batch ? source(y0 + i, p.height, p.g.padding) : -1;
      const float* row = plane + y * p.width;
      const auto fill = [&](int64_t from, int64_t to) {
        for (int64_t j = from; j < to; ++j) {
          const int64_t x = y < 0 ? -1 : source(x0 + j, p.width, p.g.padding);
          staged[j] = x < 0 ? 0.0f : row[x];
        }
      };
      if (one_vector) {
        Simd::store(staged, Simd::load_masked(row + x0, y < 0 ? none : shown));
        continue;
      }
      if (y < 0) {
        fill(0, plan.region_columns);
        continue;
      }
      fill(0, begin);
      copy<Simd>(row + x0 + begin, end - begin, staged + begin);
      fill(end, plan.region_columns);
    }
  }
}

// Puts one channel into lanes, whatever the stride and the patches' order. `corners` are those of
// the patches' input.
template <class Simd>
void pack(const Plan& plan, const float* from, int64_t row_pitch, const Corners& corners,
          float* to) {
  for (int64_t i = 0; i < plan.rows; ++i, from += row_pitch) {
    for (int64_t j = 0; j < plan.columns; j += 4) {
      for (int part = 0; part < kLanes / Simd::kWidth; ++part) {
        typename Simd::Reg four[4];
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          four[q] = Simd::load_pieces(from + j, corners.at + 4 * q + part * (Simd::kWidth / 4));
        }
        Simd::transpose(four);
        float* place = to + plan.row_place[i] + part * Simd::kWidth;
        Simd::store(place + plan.column_place[j], four[0]);
        if (j + 1 < plan.columns) Simd::store(place + plan.column_place[j + 1], four[1]);
        if (j + 2 < plan.columns) Simd::store(place + plan.column_place[j + 2], four[2]);
        if (j + 3 < plan.columns) Simd::store(place + plan.column_place[j + 3], four[3]);
      }
    }
  }
}

// The same for patches of 4 x 4 at stride 1, four or more in a row: 16 pixels of a row are the
// patches of four lanes.
template <class Simd, bool kMasked>
void pack_runs(const Plan& plan, const float* from, int64_t row_pitch, const Corners& corners,
               const typename Simd::Mask* inside, float* to) {
  constexpr int kParts = kLanes / Simd::kWidth;
  const float* runs[4];
  for (int q = 0; q < 4; ++q) runs[q] = from + corners.at[4 * q];
  const int64_t rows = plan.rows, columns = plan.columns;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; j += 4) {
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        typename Simd::Reg four[4];
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          const float* run = runs[q] + i * row_pitch + j + part * Simd::kWidth;
          if constexpr (kMasked) {
            four[q] = Simd::load_masked(run, *inside++);
          } else {
            four[q] = Simd::load(run);
          }
        }
        float* place = to + j * kLanes + part * Simd::kWidth;
        if (j + 2 < columns) {
          Simd::transpose(four);
          Simd::store(place + 2 * kLanes, four[2]);
          if (j + 3 < columns) Simd::store(place + 3 * kLanes, four[3]);
        } else {
          Simd::transpose_low(four);
        }
        Simd::store(place, four[0]);
        if (j + 1 < columns) Simd::store(place + kLanes, four[1]);
      }
    }
    to += columns * kLanes;
  }
}

// How a tile's input is read.
template <class Simd>
struct Reader {
  static constexpr int kMostRun = 3 + kMostTaps;  // rows or columns of a patch's input
  static constexpr int kMostMasks = kMostRun * (kMostRun / 4 + 1) * 4 * (kLanes / Simd::kWidth);

  bool runs;                              // pack_runs will do
  bool inside;                            // all that is read lies inside the pictures
  bool direct;                            // from the pictures, and not staged
  typename Simd::Mask masks[kMostMasks];  // direct, not inside: what is; [row][column / 4][part][q]

  Reader(const Problem& p, const Plan& plan, const Tile& tile) {
    const int64_t step = p.g.patch * p.g.stride;
    const int64_t y0 = tile.y * p.g.stride - p.g.pad_h, x0 = tile.x * p.g.stride - p.g.pad_w;
    // A patch's columns are read in fours, perhaps beyond the last one of use.
    const int64_t read_columns = (plan.lanes_x - 1) * step + (plan.columns + 3) / 4 * 4;
    inside = y0 >= 0 && y0 + plan.region_rows <= p.height && x0 >= 0 &&
             x0 + read_columns <= p.width && tile.n + plan.lanes_n <= p.batch;
    runs = p.g.patch == 4 && p.g.stride == 1 && plan.lanes_x >= 4;
    direct = inside || (runs && p.g.padding == Padding::kZeros);
    if (!direct || inside) return;
    typename Simd::Mask* mask = masks;
    for (int64_t i = 0; i < plan.rows; ++i) {
      for (int64_t j = 0; j < plan.columns; j += 4) {
        for (int64_t part = 0; part < kLanes / Simd::kWidth; ++part) {
          for (int64_t q = 0; q < 4; ++q) {
            const int64_t row = 4 * q / plan.lanes_x;  // of patches, in one picture after the other
            const int64_t n = tile.n + row / plan.lanes_y;
            const int64_t y = y0 + row % plan.lanes_y * 4 + i;
            const int64_t x = x0 + 4 * q % plan.lanes_x * 4 + j + part * Simd::kWidth;
            const bool shown = n < p.batch && y >= 0 && y < p.height;
            const int64_t end = shown ? clamp(p.width - x, Simd::kWidth) : 0;
            *mask++ = Simd::mask(static_cast<int>(clamp(-x, Simd::kWidth)), static_cast<int>(end));
          }
        }
      }
    }
  }
};

template <class Simd>
void load_block(const Problem& p, const Plan& plan, const Tile& tile, const Reader<Simd>& reader,
                int64_t c_begin, int64_t c_end, float* staged, float* scratch) {
  const int64_t step = p.g.patch * p.g.stride;
  const int64_t plane = p.height * p.width;
  const int64_t region = plan.region_rows * plan.region_pitch;
  const float* from = staged;
  int64_t row_pitch = plan.region_pitch, picture = region, channel = plan.lanes_n * region;
  if (reader.direct) {
    const int64_t y0 = tile.y * p.g.stride - p.g.pad_h, x0 = tile.x * p.g.stride - p.g.pad_w;
    from = p.input + (tile.n * p.g.in_channels + c_begin) * plane + y0 * p.width + x0;
    row_pitch = p.width, picture = p.g.in_channels * plane, channel = plane;
  }
  const Corners corners(plan, picture, step * row_pitch, step);
  float* to = scratch;
  for (int64_t c = c_begin; c < c_end; ++c, from += channel, to += plan.channel_floats) {
    if (!reader.direct && (c - c_begin) % kStaged == 0) {
      from = staged;
      for (int64_t i = 0; i < least(kStaged, c_end - c); ++i) {
        stage<Simd>(p, plan, tile, c + i, staged + i * channel);
      }
    }
    if (!reader.runs) {
      pack<Simd>(plan, from, row_pitch, corners, to);
    } else if (reader.inside || !reader.direct) {
      pack_runs<Simd, false>(plan, from, row_pitch, corners, reader.masks, to);
    } else {
      pack_runs<Simd, true>(plan, from, row_pitch, corners, reader.masks, to);
    }
  }
}

}  // namespace
}  // namespace gansparse::sparse_conv2d
