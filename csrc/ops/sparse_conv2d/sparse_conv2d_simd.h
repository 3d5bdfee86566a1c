// SPDX-License-Identifier: Apache-2.0
// sparse_conv2d over vectors. An instruction set is a traits class with
//   Reg            a vector of kWidth floats: 4, 8 or 16
//   kSums          sums kept in registers: enough to hide the latency of a multiply-add
//   load store set zero add mul_add max min
//   in_order       instructions that made a Reg stay before those that make the next
//   Mask           which floats of a vector count: mask(begin, end); load_masked
//   load_pieces    128 bits from each of kWidth / 4 places; store_pieces, its reverse
//   transpose      four vectors, 4 x 4 floats within each 128 bits; transpose_low, the first two
// Included once by each file of an instruction set. Everything here is local to that file: a shared
// inline function could end up in the plain build with instructions its machine lacks.
#pragma once

#include <cstdint>

#include "ops/sparse_conv2d/sparse_conv2d.h"
#include "ops/sparse_conv2d/sparse_conv2d_multiply.h"

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

// ---- 1. A tile's input, one channel after the other ---------------------------------------------

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

// ---- 2. Sums to pictures ------------------------------------------------------------------------

// The sums of four neighbouring columns, from lanes into runs of neighbouring pixels.
template <class Simd>
[[gnu::always_inline]] inline void load_runs(const float* sums, typename Simd::Reg* four) {
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) four[x] = Simd::load(sums + x * kLanes);
  Simd::transpose(four);
}

// The sums of one row, from lanes into picture order: [lanes_n][lanes_y · D][lanes_x · D].
template <class Simd, int kPatch>
void unpack(const Plan& plan, const float* sums, const Corners& corners, float* pixels) {
  const int64_t pitch = plan.lanes_x * kPatch;
  if constexpr (kPatch == 4) {
    for (int y = 0; y < kPatch; ++y, sums += kPatch * kLanes, pixels += pitch) {
      for (int part = 0; part < kLanes / Simd::kWidth; ++part) {
        typename Simd::Reg four[4];
        load_runs<Simd>(sums + part * Simd::kWidth, four);
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          if (plan.lanes_x >= 4) {
            Simd::store(pixels + corners.at[4 * q] + part * Simd::kWidth, four[q]);
          } else {
            Simd::store_pieces(pixels, corners.at + 4 * q + part * (Simd::kWidth / 4), four[q]);
          }
        }
      }
    }
  } else {
#pragma GCC unroll 16
    for (int u = 0; u < kLanes; ++u) {
      const float* const from = sums + u % 4 * 4 + u / 4;
      float* const to = pixels + corners.at[u];
#pragma GCC unroll 4
      for (int i = 0; i < kPatch * kPatch; ++i)
        to[i / kPatch * pitch + i % kPatch] = from[i * kLanes];
    }
  }
}

// to[2 · i] = even[i] + biases[0], to[2 · i + 1] = odd[i] + biases[1]: the compiler makes vectors
// of it.
inline void interleave(const float* __restrict__ even, const float* __restrict__ odd,
                       const float* biases, int64_t n, float* __restrict__ to) {
  const float even_bias = biases[0], odd_bias = biases[1];
  for (int64_t i = 0; i < n; ++i) {
    to[2 * i] = even[i] + even_bias;
    to[2 * i + 1] = odd[i] + odd_bias;
  }
}

// What happens to the sums of one output channel on their way to the output.
struct End {
  float bias, slope;
  const float* residual;  // as far from its start as the output is, or null
};

template <class Simd, Activation kActivation>
inline void write_vector(typename Simd::Reg z, const End& end, int64_t at, float* output) {
  const auto zero = Simd::zero();
  z = Simd::add(z, Simd::set(end.bias));
  if (end.residual != nullptr) z = Simd::add(z, Simd::load(end.residual + at));
  if constexpr (kActivation == Activation::kRelu) z = Simd::max(zero, z);
  if constexpr (kActivation == Activation::kLeaky) {
    z = Simd::mul_add(Simd::set(end.slope), Simd::min(zero, z), Simd::max(zero, z));
  }
  Simd::store(output + at, z);
}

template <class Simd, Activation kActivation>
inline void write_pixels(const float* from, int64_t n, const End& end, int64_t at, float* output) {
  int64_t i = 0;
  for (; i + Simd::kWidth <= n; i += Simd::kWidth) {
    write_vector<Simd, kActivation>(Simd::load(from + i), end, at + i, output);
  }
  const float* const residual = end.residual;
  output += at;
  for (; i < n; ++i) {
    float z = from[i] + end.bias;
    if (residual != nullptr) z += residual[at + i];
    if constexpr (kActivation == Activation::kRelu) z = z < 0 ? 0 : z;
    if constexpr (kActivation == Activation::kLeaky) z = z < 0 ? end.slope * z : z;
    output[i] = z;
  }
}

// Writes output channels of a tile of 4 x 4 patches, four or more in a row, that lies inside the
// output: straight from the registers that put the pixels in order. Elsewhere they go through a
// picture of their own, and a layer takes up to 7 % longer.
template <class Simd, Activation kActivation>
void write_whole(const Problem& p, const Plan& plan, const Tile& tile, int64_t first, int64_t rows,
                 const float* sums) {
  const int64_t plane = p.out_height * p.out_width;
  const Corners corners(plan, p.g.out_channels * plane, 4 * p.out_width, 4);
  int64_t at = (tile.n * p.g.out_channels + first) * plane + tile.y * p.out_width + tile.x;
  for (int64_t o = first; o < least(first + rows, p.g.out_channels); ++o, at += plane) {
    const End end{p.bias == nullptr ? 0.0f : p.bias[o], p.slopes[o * p.slope_step], p.residual};
    for (int y = 0; y < 4; ++y, sums += 4 * kLanes) {
      for (int part = 0; part < kLanes / Simd::kWidth; ++part) {
        typename Simd::Reg four[4];
        load_runs<Simd>(sums + part * Simd::kWidth, four);
        const int64_t line = at + y * p.out_width + part * Simd::kWidth;
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          write_vector<Simd, kActivation>(four[q], end, line + corners.at[4 * q], p.output);
        }
      }
    }
  }
}

// Writes a chunk's output channels of one tile.
template <class Simd, int kPatch, int kUp, Activation kActivation>
void write_chunk(const Problem& p, const Plan& plan, const Tile& tile, int64_t chunk,
                 const float* sums) {
  constexpr int64_t kRowFloats = kPatch * kPatch * kLanes;
  const int64_t high = plan.lanes_y * kPatch, wide = plan.lanes_x * kPatch;
  const Corners corners(plan, high * wide, kPatch * wide, kPatch);
  alignas(64) float pixels[kUp * kUp][kRowFloats];
  alignas(64) float line[kUp * kPatch * kLanes];
  const int64_t vector = p.g.vector;
  const int64_t first = chunk * kChunkRows;
  const int64_t rows = least(kChunkRows, plan.matrix_rows - first);
  const int64_t pictures = least(plan.lanes_n, p.batch - tile.n);
  const int64_t lines = least(high, (p.out_height - 1) / kUp + 1 - tile.y);
  const int64_t columns = least(wide * kUp, p.out_width - tile.x * kUp);
  if constexpr (kPatch == 4 && kUp == 1) {
    const bool whole = columns == wide && lines == high && pictures == plan.lanes_n;
    if (whole && plan.lanes_x >= 4) {
      return write_whole<Simd, kActivation>(p, plan, tile, first, rows, sums);
    }
  }
  for (int64_t i = 0; i < rows / (kUp * kUp); ++i) {
    const int64_t o = first / (kUp * kUp) + i;
    if (o >= p.g.out_channels) return;
    for (int64_t phase = 0; phase < kUp * kUp; ++phase) {
      const int64_t row = (i / vector * kUp * kUp + phase) * vector + i % vector;
      unpack<Simd, kPatch>(plan, sums + row * kRowFloats, corners, pixels[phase]);
    }
    float biases[kUp * kUp] = {};
    for (int64_t phase = 0; phase < kUp * kUp && p.bias != nullptr; ++phase) {
      biases[phase] = p.bias[p.bias_step ? o * kUp * kUp + phase : o];
    }
    const End end{kUp == 1 ? biases[0] : 0.0f, p.slopes[o * p.slope_step], p.residual};
    for (int64_t n = 0; n < pictures; ++n) {
      const int64_t plane = ((tile.n + n) * p.g.out_channels + o) * p.out_height;
      int64_t at = (plane + tile.y * kUp) * p.out_width + tile.x * kUp;
      int64_t from = n * high * wide;
      for (int64_t y = 0; y < lines; ++y, from += wide) {
        if constexpr (kUp == 1) {
          write_pixels<Simd, kActivation>(pixels[0] + from, columns, end, at, p.output);
          at += p.out_width;
        } else {
          for (int64_t a = 0; a < kUp && (tile.y + y) * kUp + a < p.out_height; ++a) {
            const float* const even = pixels[a * kUp] + from;
            interleave(even, pixels[a * kUp + 1] + from, biases + a * kUp, wide, line);
            write_pixels<Simd, kActivation>(line, columns, end, at, p.output);
            at += p.out_width;
          }
        }
      }
    }
  }
}

template <class Simd, int kPatch, Activation kActivation>
void write_chunk(const Problem& p, const Plan& plan, const Tile& tile, int64_t chunk,
                 const float* sums) {
  if (p.g.upscale == 1)
    return write_chunk<Simd, kPatch, 1, kActivation>(p, plan, tile, chunk, sums);
  write_chunk<Simd, kPatch, 2, kActivation>(p, plan, tile, chunk, sums);
}

template <class Simd, int kPatch>
void finish_chunk(const Problem& p, const Plan& plan, const Tile& tile, int64_t chunk,
                  const float* sums) {
  switch (p.activation) {
    case Activation::kNone:
      return write_chunk<Simd, kPatch, Activation::kNone>(p, plan, tile, chunk, sums);
    case Activation::kRelu:
      return write_chunk<Simd, kPatch, Activation::kRelu>(p, plan, tile, chunk, sums);
    case Activation::kLeaky:
      return write_chunk<Simd, kPatch, Activation::kLeaky>(p, plan, tile, chunk, sums);
  }
}

// ---- 3. A tile of a chunk -----------------------------------------------------------------------

template <class Simd, int kPatch>
void run_unit(const Problem& p, const Plan& plan, const Workspace& space, int64_t chunk,
              const Tile& tile, bool loaded) {
  const int64_t chunk_lists = kChunkRows / p.g.vector;  // a block, in every chunk but the last
  const int64_t before = chunk * chunk_lists * plan.blocks;
  const int64_t lists = least(chunk_lists, plan.matrix_rows / p.g.vector - chunk * chunk_lists);
  const Reader<Simd> reader(p, plan, tile);
  // Where a row has one register of sums, all of a vector's rows go together: their weights are
  // read as they lie, once, which is what a layer of few pixels waits for.
  constexpr int kMany = kPatch == 1 && Simd::kWidth == kLanes ? Simd::kSums : 4;
  for (int64_t block = 0; block < plan.blocks; ++block) {
    const int64_t c = block * p.g.block;
    const int64_t end = least(c + p.g.block, p.g.in_channels);
    float* const scratch = space.scratch + block * plan.block_floats;
    if (!loaded) load_block<Simd>(p, plan, tile, reader, c, end, space.staged, scratch);
    const int64_t first = before + block * lists;
    const Lists those{p, first, first + lists, chunk * kChunkRows};
    if (p.g.vector == 1) {
      multiply_element<Simd, kPatch>(those, scratch, plan.row_floats, block > 0, space.sums);
    } else if (kMany > 4 && p.g.vector % kMany == 0) {
      multiply_vector<Simd, kPatch, kMany>(those, scratch, plan.row_floats, block > 0, space.sums);
    } else {
      multiply_vector<Simd, kPatch, 4>(those, scratch, plan.row_floats, block > 0, space.sums);
    }
  }
  finish_chunk<Simd, kPatch>(p, plan, tile, chunk, space.sums);
}

template <class Simd>
void run_units(const Problem& p, const Plan& plan, const Workspace& space, int64_t begin,
               int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t chunk = unit % plan.chunks, index = unit / plan.chunks;
    const bool loaded = plan.block_floats > 0 && unit > begin && chunk > 0;
    const Tile tile = tile_at(p, plan, index);
    switch (p.g.patch) {
      case 1:
        run_unit<Simd, 1>(p, plan, space, chunk, tile, loaded);
        break;
      case 2:
        run_unit<Simd, 2>(p, plan, space, chunk, tile, loaded);
        break;
      default:
        run_unit<Simd, 4>(p, plan, space, chunk, tile, loaded);
    }
  }
}

}  // namespace
}  // namespace gansparse::sparse_conv2d
