// SPDX-License-Identifier: Apache-2.0
// sparse_conv2d: convolution with packed sparse weights; bias, residual and activation at its end.
//
// With x̂ the input after padding (zeros, reflection or replication) and W zero where it was pruned:
//   z[n, o, i, j] = bias[o] + residual[n, o, i, j]
//                 + Σ_{c, r, s} W[o, c, r, s] · x̂[n, c, i · stride + r, j · stride + s]
//   y = z, max(z, 0), or z where z ≥ 0 and slope · z elsewhere (leaky_relu; slope[o]: prelu),
//   tanh(z)
// A transposed convolution of stride 2 is a convolution of stride 1 with 2² · O output channels,
// the phases of an output pixel, followed by a pixel shuffle (Shi et al. 2016): `upscale` is its
// factor. What was pruned is not computed: a NaN in the input goes no further than the weights that
// stayed.
//
// | argument   | shape                    | dtype                                   | role  |
// |------------|--------------------------|-----------------------------------------|-------|
// | input      | [N, C, H, W]             | float32                                 | read  |
// | weight     | PackedConv2d: see below  | float32, int16, int32                   | read  |
// | bias       | [O], [O · upscale²], None | float32                                | read  |
// | residual   | [N, O, OH, OW], or None  | float32                                 | read  |
// | activation | name                     | none, relu, leaky_relu, prelu or tanh   |       |
// | slope      | number; prelu: [1], [O]  | float32                                 | read  |
// | out        | [N, O, OH, OW]           | float32                                 | write |
//
// OH = ⌊(H · upscale + growth) / stride⌋, where a convolution's growth is 2 · padding − R + stride;
// OW likewise. With upscale² · O biases, that of channel o at the pixels (a, b) modulo upscale is
// number (o · upscale + a) · upscale + b, as a pixel shuffle has it.
//
// Packed weights. The R x S taps of an input channel meet a patch of D x D output pixels in
// (D − 1) · stride + R rows and (D − 1) · stride + S columns of input: what the kernel keeps of a
// channel in its scratch, 16 patches side by side in the lanes of a vector. Row i and column j lie
// in vector
//   ((i mod stride · stride + j mod stride) · rows + ⌊i / stride⌋) · columns + ⌊j / stride⌋
// of the channel's stride² · rows · columns vectors, where rows = D − 1 + ⌈R / stride⌉ and columns
// likewise; so pixel (y, x) of a patch finds its input for any tap (y · columns + x) vectors behind
// that of pixel (0, 0), whatever the stride.
//
// The output channels are the rows of a matrix: M = upscale² · O of them, ordered [O / V][phase][V]
// with O filled up to a multiple of V. V neighbouring rows share one pattern (V = 1: `element`). A
// *list* holds the weights of V rows and `block` input channels. Lists are ordered by chunks of 256
// rows, then by blocks of channels, then by length, so that the end of a list is foreseen.
//
//   values    [K, V] float32: the weights, list after list
//   offsets   [K] int16, read as unsigned: floats from the scratch's start to the vector that pixel
//             (0, 0) of a patch needs for the weight's channel and tap
//   starts    [L + 1] int32: list l is [starts[l], starts[l + 1]) of values and offsets
//   rows      [L] int32: the first of the V rows of list l
//   geometry  14 numbers: the struct Geometry below, in its order
//
// Cost: 2 · K · V · (pixels) flops; bound by the loads of the first cache (V = 1: 18 loads for 16
// vectors of multiply-adds, at two a cycle) or by multiply-adds. Converting between picture order
// and lanes happens in the first cache, once a tile: there is no layout but torch's own, as of
// three that were kept between layers none was faster (docs/results.md). On CUDA:
// sparse_conv2d_lists.h.
#pragma once

#include <cstdint>

namespace gansparse::sparse_conv2d {

constexpr int kLanes = 16;           // patches side by side, whatever the instruction set
constexpr int64_t kChunkRows = 256;  // their sums, 1 KB a row at D = 4, stay in the second cache
// Any 16-bit offset lies inside the scratch, so wrong offsets give wrong sums and nothing worse.
constexpr int64_t kScratchFloats = 65536;
constexpr int64_t kMostKept = 1 << 20;  // floats of a tile in lanes that are kept for its chunks
constexpr int64_t kMostTaps = 15;

enum class Padding : int64_t { kZeros, kReflect, kReplicate };
enum class Activation { kNone, kRelu, kLeaky };

struct Geometry {
  int64_t out_channels;  // O
  int64_t in_channels;   // C
  int64_t taps_h, taps_w;
  int64_t stride;
  int64_t upscale;
  int64_t pad_h, pad_w;        // rows above and columns left of the input
  int64_t growth_h, growth_w;  // see OH
  Padding padding;
  int64_t patch;   // D: 1, 2 or 4
  int64_t vector;  // V: 1 or a multiple of 4
  int64_t block;   // input channels a list
};
constexpr int kGeometryNumbers = 14;

struct Problem {
  Geometry g;
  int64_t batch, height, width;   // N, H, W
  int64_t out_height, out_width;  // OH, OW
  int64_t lists, weights;         // L, K
  const float* input;             // [N, C, H, W]
  const float* values;            // [K, V]
  const uint16_t* offsets;        // [K]
  const int32_t* starts;          // [L + 1]
  const int32_t* rows;            // [L]
  const float* bias;              // [O] or [O][phase], or null
  int64_t bias_step;              // 0 or 1: from one phase's bias to the next
  const float* residual;          // [N, O, OH, OW], or null
  const float* slopes;            // [1] or [O]; used by kLeaky
  int64_t slope_step;             // 0 or 1: from one channel's slope to the next
  Activation activation;
  float* output;  // [N, O, OH, OW]
};

// ---- CPU kernels --------------------------------------------------------------------------------

// Channels that are staged before they are read again: a load from two stores waits for both.
constexpr int64_t kStaged = 4;
constexpr int kMostColumns = 32;  // of a patch's input: 3 · stride + taps, rounded up to 4

// How the pictures are cut up: a tile is 16 patches, lanes_y x lanes_x in each of lanes_n pictures.
// Patch u = (n · lanes_y + y) · lanes_x + x = 4 · q + p lies in lane 4 · p + q: then four vectors
// of neighbouring pixels become four lanes' patches by transposing 4 x 4 floats within 128 bits.
struct Plan {
  int64_t lanes_n, lanes_y, lanes_x;
  int64_t tiles_n, tiles_y, tiles_x;
  int64_t rows, columns;                // of a patch's input: (D − 1) · stride + taps
  int64_t row_floats;                   // of the scratch, from one row of pixels to the next
  int64_t channel_floats;               // of the scratch
  int64_t row_place[kMostColumns];      // of the scratch, where row i of a patch's input lies …
  int64_t column_place[kMostColumns];   // … and how far from there its column j
  int64_t region_rows, region_columns;  // a tile's input in one channel of one picture
  int64_t region_pitch;                 // between rows of a staged region
  int64_t matrix_rows;                  // M
  int64_t chunks, blocks, tiles;
  int64_t block_floats;  // of the scratch, from one block to the next; 0: they take turns
};

// A thread's own memory, aligned to 64 bytes.
struct Workspace {
  float* staged;   // [kStaged][lanes_n][region_rows][region_pitch]: input of tiles at the border
  float* scratch;  // one block of channels, or all; kScratchFloats and a channel from each on
  float* sums;     // [chunk's rows][D][D][16]
};

// Units [begin, end), of tiles · chunks: the chunks of tile 0, then those of tile 1, …
using RunUnits = void (*)(const Problem& p, const Plan& plan, const Workspace& space, int64_t begin,
                          int64_t end);
void run_units_avx2(const Problem& p, const Plan& plan, const Workspace& space, int64_t begin,
                    int64_t end);
void run_units_avx512(const Problem& p, const Plan& plan, const Workspace& space, int64_t begin,
                      int64_t end);

// ---- Whole op -----------------------------------------------------------------------------------

void run_cpu(const Problem& problem);

}  // namespace gansparse::sparse_conv2d
