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
#include "ops/sparse_conv2d/sparse_conv2d_input.h"
#include "ops/sparse_conv2d/sparse_conv2d_multiply.h"
#include "ops/sparse_conv2d/sparse_conv2d_output.h"

namespace gansparse::sparse_conv2d {
namespace {

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
  constexpr int kSpan = kPatch == 4 ? 6 : 0;  // of windows of 3 taps
  for (int64_t block = 0; block < plan.blocks; ++block) {
    const int64_t c = block * p.g.block;
    const int64_t end = least(c + p.g.block, p.g.in_channels);
    float* const scratch = space.scratch + block * plan.block_floats;
    if (!loaded) load_block<Simd>(p, plan, tile, reader, c, end, space.staged, scratch);
    const int64_t first = before + block * lists;
    const Lists those{p, first, first + lists, chunk * kChunkRows};
    if (p.g.vector == 1 && kPatch == 4 && plan.row_floats == kSpan * kLanes) {
      multiply_element<Simd, kPatch, kSpan>(those, scratch, kSpan * kLanes, block > 0, space.sums);
    } else if (p.g.vector == 1) {
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
