// SPDX-License-Identifier: Apache-2.0
// The border of sparse_conv2d: every rule about its arguments is checked here, once.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/python_args.h"
#include "ops/rooms.h"
#include "ops/sparse_conv2d/sparse_conv2d_checks.h"
#include "ops/sparse_conv2d/sparse_conv2d_lists.h"
#include "ops/sparse_conv2d/sparse_conv2d_tiles.h"
#include "ops/sparse_conv2d/sparse_conv2d_warpgroups.h"
#include "ops/sparse_conv2d/winograd_conv2d.h"

namespace py = pybind11;

namespace gansparse {
namespace {

using sparse_conv2d::Activation;
using sparse_conv2d::check;
using sparse_conv2d::check_aligned;
using sparse_conv2d::check_apart;
using sparse_conv2d::check_array;
using sparse_conv2d::check_channels_last;
using sparse_conv2d::check_geometry;
using sparse_conv2d::check_shape;
using sparse_conv2d::Geometry;
using sparse_conv2d::Padding;
using sparse_conv2d::Problem;
using sparse_conv2d::TileActivation;
using sparse_conv2d::TileProblem;
using sparse_conv2d::TileType;

// Lists follow one another without gaps, and each belongs to a chunk of rows in its turn. At every
// call: so first all at once, in loops that become vectors, and only then which it was.
void check_lists(const Problem& p) {
  const int64_t blocks = (p.g.in_channels + p.g.block - 1) / p.g.block;
  const int64_t matrix_rows = p.lists / blocks * p.g.vector;
  const auto must = [](const char* name, const char* rule, int64_t got) {
    refuse(check.op(), name, rule, std::to_string(got));
  };
  if (p.starts[0] != 0) must("weight.starts", "begin with 0", p.starts[0]);
  int descends = 0;
  for (int64_t i = 0; i < p.lists; ++i) descends |= p.starts[i + 1] < p.starts[i];
  for (int64_t i = 0; i < p.lists && descends; ++i) {
    if (p.starts[i + 1] < p.starts[i]) must("weight.starts", "not descend", p.starts[i + 1]);
  }
  const int32_t* rows = p.rows;
  for (int64_t row = 0; row < matrix_rows; row += sparse_conv2d::kChunkRows) {
    const int64_t end = std::min(row + sparse_conv2d::kChunkRows, matrix_rows);
    const int64_t lists = (end - row) / p.g.vector * blocks;
    const int32_t least = static_cast<int32_t>(row), most = static_cast<int32_t>(end - p.g.vector);
    int outside = 0;
    for (int64_t i = 0; i < lists; ++i) outside |= (rows[i] < least) | (rows[i] > most);
    for (int64_t i = 0; i < lists && outside; ++i) {
      if (rows[i] < least || rows[i] > most) must("weight.rows", "lie within their chunk", rows[i]);
    }
    rows += lists;
  }
  if (p.starts[p.lists] != p.weights) {
    must("weight.starts", "end with the number of offsets", p.starts[p.lists]);
  }
}

Activation check_activation(const std::string& name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "leaky_relu" || name == "prelu") return Activation::kLeaky;
  refuse(check.op(), "activation", "be none, relu, leaky_relu, prelu or tanh", name);
}

#ifndef GANSPARSE_WITH_CUDA
[[noreturn]] void refuse_cuda() {
  throw DeviceError(
      "sparse_conv2d: this gansparse was built without CUDA; install it where nvcc is found, or "
      "use tensors and weights on the CPU");
}
#endif

// From the geometry and the input [N, C, H, W]: every size of a Problem or TileProblem.
template <class P>
void set_output_size(const TensorView& x, P* problem) {
  P& p = *problem;
  const Geometry& g = p.g;
  p.batch = x.shape[0], p.height = x.shape[2], p.width = x.shape[3];
  const auto fits = [&](int64_t size, int64_t taps, int64_t pad, int64_t out) {
    // The last output's taps must begin inside the padded input; and a mirror needs its pixels.
    const bool mirrored = g.padding != Padding::kReflect || pad < size;
    return size >= 1 && out >= 1 && mirrored && (g.upscale == 2 || taps <= size + 2 * pad);
  };
  p.out_height = (p.height * g.upscale + g.growth_h) / g.stride;
  p.out_width = (p.width * g.upscale + g.growth_w) / g.stride;
  check.that(fits(p.height, g.taps_h, g.pad_h, p.out_height) &&
                 fits(p.width, g.taps_w, g.pad_w, p.out_width),
             "input",
             "be at least as large as the kernel, padding included, and larger than a "
             "reflected padding",
             x.text());
}

// The input of lists and Winograd's op, and with it every size.
void take_input(const TensorView& x, Problem* problem) {
  Problem& p = *problem;
  if (x.dtype != DType::kFloat32 || x.ndim != 4 || x.shape[1] != p.g.in_channels) {
    refuse(check.op(), "input",
           "be float32 [N, " + std::to_string(p.g.in_channels) + ", H, W] on " + x.device.name(),
           x.text());
  }
  check.contiguous(x, "input");
  set_output_size(x, &p);
  p.input = x.as<const float>();
}

// Input and lists, which the op and its gradient have in common.
void take_lists(const TensorView& x, const TensorView& offsets, const TensorView& starts,
                const TensorView& rows, const std::vector<int64_t>& geometry, Problem* problem) {
  Problem& p = *problem;
  p.g = check_geometry(geometry);
  const Geometry& g = p.g;
  take_input(x, &p);
  if (x.device.is_cuda()) {
    const int64_t outputs = p.batch * g.out_channels * p.out_height * p.out_width;
    check.that(std::max(x.numel(), outputs) <= INT32_MAX, "input",
               "have at most 2^31 elements on cuda, and its output too", x.text());
  }
  p.weights = offsets.ndim == 1 ? offsets.shape[0] : -1;
  check_array(offsets, DType::kInt16, {p.weights}, "weight.offsets", x.device);
  const int64_t groups = (g.out_channels + g.vector - 1) / g.vector * g.upscale * g.upscale;
  p.lists = groups * ((g.in_channels + g.block - 1) / g.block);
  check_array(starts, DType::kInt32, {p.lists + 1}, "weight.starts", x.device);
  check_array(rows, DType::kInt32, {p.lists}, "weight.rows", x.device);
  p.offsets = offsets.as<const uint16_t>();
  p.starts = starts.as<const int32_t>();
  p.rows = rows.as<const int32_t>();
}

// What lists and Winograd's op have beside input and weight; false where there is nothing to
// compute. `number` is the slope where it is one; on CUDA p.slopes is null then.
bool take_pictures(const TensorView& x, const py::object& bias, const py::object& residual,
                   const std::string& activation, const py::object& slope, const py::object& output,
                   float* number, Problem* problem) {
  const char* op = check.op();
  Problem& p = *problem;
  const Geometry& g = p.g;
  const Device device = x.device;
  const std::optional<TensorView> bias_view = optional_view_of(bias, op, "bias");
  const std::optional<TensorView> residual_view = optional_view_of(residual, op, "residual");
  const TensorView y = view_of(output, op, "out");
  const int64_t phases = g.upscale * g.upscale;
  p.bias_step = bias_view && bias_view->numel() == phases * g.out_channels && phases > 1 ? 1 : 0;
  const int64_t biases = p.bias_step ? phases * g.out_channels : g.out_channels;
  if (bias_view) check_array(*bias_view, DType::kFloat32, {biases}, "bias", device);
  const std::vector<int64_t> out_shape{p.batch, g.out_channels, p.out_height, p.out_width};
  if (residual_view) check_array(*residual_view, DType::kFloat32, out_shape, "residual", device);
  check_array(y, DType::kFloat32, out_shape, "out", device);
  check_apart(y, x, "input");
  if (residual_view) check_apart(y, *residual_view, "residual");
  p.activation = check_activation(activation);
  p.slopes = device.is_cuda() ? nullptr : number;
  if (PyFloat_Check(slope.ptr())) {
    *number = slope.cast<float>();
  } else {
    const TensorView slope_view = view_of(slope, op, "slope");
    const bool one = slope_view.numel() == 1;
    check_array(slope_view, DType::kFloat32, {one ? 1 : g.out_channels}, "slope", device);
    p.slopes = slope_view.as<const float>();
    p.slope_step = one ? 0 : 1;
  }
  p.bias = bias_view ? bias_view->as<const float>() : nullptr;
  p.residual = residual_view ? residual_view->as<const float>() : nullptr;
  p.output = y.as<float>();
  return !x.described && y.numel() > 0;
}

void convolve(const py::object& input, const py::object& values, const py::object& offsets,
              const py::object& starts, const py::object& rows,
              const std::vector<int64_t>& geometry, const py::object& bias,
              const py::object& residual, const std::string& activation, const py::object& slope,
              const py::object& output, uintptr_t stream) {
  const char* op = check.op();
  const TensorView x = view_of(input, op, "input");
  const TensorView value_view = view_of(values, op, "weight.values");
  const TensorView offset_view = view_of(offsets, op, "weight.offsets");
  const TensorView start_view = view_of(starts, op, "weight.starts");
  const TensorView row_view = view_of(rows, op, "weight.rows");
  const Device device = x.device;
  Problem p{};
  float number = 0.0f;
  take_lists(x, offset_view, start_view, row_view, geometry, &p);
  check_array(value_view, DType::kFloat32, {p.weights, p.g.vector}, "weight.values", device);
  if (device.is_cuda() && p.g.vector > 1) check_aligned(value_view, "weight.values");
  p.values = value_view.as<const float>();
  if (!take_pictures(x, bias, residual, activation, slope, output, &number, &p)) return;

  const py::gil_scoped_release released;
  if (device.is_cuda()) {
#ifdef GANSPARSE_WITH_CUDA
    return sparse_conv2d::run_cuda(p, number, device.index, stream);
#else
    refuse_cuda();
#endif
  }
  (void)stream;
  check_lists(p);
  sparse_conv2d::run_cpu(p);
}

// Gradient of weight.values, on CUDA only: on the CPU torch's is used. Without pictures nothing is
// written.
void convolve_gradient(const py::object& input, const py::object& offsets, const py::object& starts,
                       const py::object& rows, const std::vector<int64_t>& geometry,
                       const py::object& grad, const py::object& output, uintptr_t stream) {
  const char* op = check.op();
  const TensorView x = view_of(input, op, "input");
  const TensorView offset_view = view_of(offsets, op, "weight.offsets");
  const TensorView start_view = view_of(starts, op, "weight.starts");
  const TensorView row_view = view_of(rows, op, "weight.rows");
  const TensorView grad_view = view_of(grad, op, "grad");
  const TensorView y = view_of(output, op, "output");
  check.that(x.device.is_cuda(), "input", "be on cuda", x.text() + " on " + x.device.name());
  Problem p{};
  take_lists(x, offset_view, start_view, row_view, geometry, &p);
  check_array(grad_view, DType::kFloat32, {p.batch, p.g.out_channels, p.out_height, p.out_width},
              "grad", x.device);
  check_array(y, DType::kFloat32, {p.weights, p.g.vector}, "output", x.device);
  if (x.described || y.numel() == 0 || grad_view.numel() == 0) return;
  const py::gil_scoped_release released;
#ifdef GANSPARSE_WITH_CUDA
  sparse_conv2d::run_gradient_cuda(p, grad_view.as<const float>(), y.as<float>(), x.device.index,
                                   stream);
#else
  (void)stream;
  refuse_cuda();
#endif
}

void convolve_winograd(const py::object& input, const py::object& values,
                       const std::vector<int64_t>& geometry, const py::object& bias,
                       const py::object& residual, const std::string& activation,
                       const py::object& slope, const py::object& output) {
  const TensorView x = view_of(input, check.op(), "input");
  const TensorView value_view = view_of(values, check.op(), "weight.values");
  Problem p{};
  float number = 0.0f;
  p.g = check_geometry(geometry);
  const Geometry& g = p.g;
  const auto that = [](bool holds, const char* name, const char* rule, int64_t got) {
    check.that(holds, std::string("weight.geometry.") + name, rule, std::to_string(got));
  };
  that(g.taps_h == 3, "taps_h", "be 3 for Winograd", g.taps_h);
  that(g.taps_w == 3, "taps_w", "be 3 for Winograd", g.taps_w);
  that(g.stride == 1, "stride", "be 1 for Winograd", g.stride);
  that(g.patch == 4, "patch", "be 4 for Winograd", g.patch);
  that(g.vector == sparse_conv2d::kWinogradRows, "vector", "be 8 for Winograd", g.vector);
  check.that(!x.device.is_cuda(), "input", "be on cpu for Winograd", x.text());
  take_input(x, &p);
  const int64_t groups = (g.out_channels + g.vector - 1) / g.vector * g.upscale * g.upscale;
  check_array(value_view, DType::kFloat32,
              {sparse_conv2d::kPositions, groups, g.in_channels, g.vector}, "weight.values");
  p.values = value_view.as<const float>();
  if (!take_pictures(x, bias, residual, activation, slope, output, &number, &p)) return;

  const py::gil_scoped_release released;
  sparse_conv2d::run_winograd(p);
}

// ---- Tiles, on CUDA -----------------------------------------------------------------------------

TileActivation check_tile_activation(const std::string& name) {
  if (name == "tanh") return TileActivation::kTanh;
  switch (check_activation(name)) {
    case Activation::kRelu:
      return TileActivation::kRelu;
    case Activation::kLeaky:
      return TileActivation::kLeaky;
    default:
      return TileActivation::kNone;
  }
}

Geometry check_tile_geometry(const std::vector<int64_t>& numbers, bool two_of_four, bool columns) {
  const Geometry g = check_geometry(numbers);
  const auto that = [](bool holds, const char* name, const char* rule, int64_t got) {
    check.that(holds, std::string("weight.geometry.") + name, rule, std::to_string(got));
  };
  that(g.in_channels % 8 == 0, "in_channels", "be a multiple of 8 on CUDA", g.in_channels);
  that(std::max(g.taps_h, g.taps_w) <= sparse_conv2d::kMostTileTaps, "taps",
       "be at most 9 x 9 on CUDA", std::max(g.taps_h, g.taps_w));
  that(g.block == sparse_conv2d::kStepChannels || (columns && g.block == 64), "block",
       columns ? "be 32 or 64 for vector on CUDA" : "be 32 on CUDA", g.block);
  const bool known = two_of_four ? g.vector == 64 || g.vector == 128 : g.vector == 16;
  that((g.vector == 32 && !columns) || known, "vector",
       two_of_four ? "be 32, 64 or 128 for 2:4"
       : columns   ? "be 16 for vector"
                   : "be 16 or 32 for block",
       g.vector);
  return g;
}

// Input and tiles, which the op and its gradient have in common.
DType take_tiles(const TensorView& x, const TensorView& values, const TensorView& places,
                 const TensorView& starts, const std::vector<int64_t>& geometry,
                 TileProblem* problem) {
  const char* op = check.op();
  TileProblem& p = *problem;
  p.columns = places.ndim == 2 && places.shape[1] == sparse_conv2d::kColumnStep;
  p.two_of_four = !p.columns && values.ndim == 5 && values.shape[2] == 1;
  p.g = check_tile_geometry(geometry, p.two_of_four, p.columns);
  const Geometry& g = p.g;
  const DType dtype = values.dtype;
  check.that(dtype == DType::kFloat16 || dtype == DType::kBFloat16, "weight.values",
             "be float16 or bfloat16", values.text());
  if (x.dtype != dtype || x.ndim != 4 || x.shape[1] != g.in_channels || !x.device.is_cuda()) {
    refuse(op, "input",
           std::string("be ") + name_of(dtype) + " [N, " + std::to_string(g.in_channels) +
               ", H, W] on cuda",
           x.text());
  }
  check_channels_last(x, "input");
  set_output_size(x, &p);
  check.that(p.batch * p.height * p.width <= INT32_MAX, "input", "have at most 2^31 pixels",
             x.text());
  p.steps = places.ndim == 2 ? places.shape[0] : -1;
  check_array(places, DType::kInt16, {p.steps, p.columns ? sparse_conv2d::kColumnStep : 4},
              "weight.places", x.device);
  check_array(values, dtype, {p.steps, g.vector / 16, p.two_of_four || p.columns ? 1 : 2, 32, 8},
              "weight.values", x.device);
  check_aligned(values, "weight.values");
  const int64_t tiles = (g.out_channels + g.vector - 1) / g.vector * g.upscale * g.upscale;
  const int64_t chunks = (g.in_channels + g.block - 1) / g.block;
  check_array(starts, DType::kInt32, {tiles * chunks + 1}, "weight.starts", x.device);
  p.input = x.data;
  p.values = values.data;
  p.places = places.as<const int16_t>();
  p.starts = starts.as<const int32_t>();
  return dtype;
}

[[maybe_unused]] TileType tile_type(DType dtype) {
  return dtype == DType::kFloat16 ? TileType::kFloat16 : TileType::kBFloat16;
}

void convolve_tiles(const py::object& input, const py::object& values, const py::object& metadata,
                    const py::object& places, const py::object& starts,
                    const std::vector<int64_t>& geometry, const py::object& bias,
                    const py::object& residual, const std::string& activation,
                    const py::object& slope, const py::object& output, uintptr_t stream,
                    const py::object& moments) {
  // ---- Take the views and check them ------------------------------------------------------------
  const char* op = check.op();
  const TensorView x = view_of(input, op, "input");
  const TensorView value_view = view_of(values, op, "weight.values");
  const TensorView metadata_view = view_of(metadata, op, "weight.metadata");
  const TensorView place_view = view_of(places, op, "weight.places");
  const TensorView start_view = view_of(starts, op, "weight.starts");
  const std::optional<TensorView> bias_view = optional_view_of(bias, op, "bias");
  const std::optional<TensorView> residual_view = optional_view_of(residual, op, "residual");
  const TensorView y = view_of(output, op, "output");
  const std::optional<TensorView> moment_view = optional_view_of(moments, op, "moments");

  TileProblem p{};
  const DType dtype = take_tiles(x, value_view, place_view, start_view, geometry, &p);
  const Geometry& g = p.g;
  const Device device = x.device;
  check_array(
      metadata_view, DType::kInt32,
      p.two_of_four ? std::vector<int64_t>{p.steps, g.vector / 32, 32} : std::vector<int64_t>{0},
      "weight.metadata", device);
  if (bias_view) check_array(*bias_view, DType::kFloat32, {g.out_channels}, "bias", device);
  const std::vector<int64_t> out_shape{p.batch, g.out_channels, p.out_height, p.out_width};
  if (residual_view) {
    check_shape(*residual_view, dtype, out_shape, "residual", device);
    check_channels_last(*residual_view, "residual");
  }
  check_shape(y, dtype, out_shape, "output", device);
  check_channels_last(y, "output");
  p.activation = check_tile_activation(activation);
  if (PyFloat_Check(slope.ptr())) {
    p.slope = slope.cast<float>();
  } else {
    const TensorView slope_view = view_of(slope, op, "slope");
    const bool one = slope_view.numel() == 1;
    check_array(slope_view, DType::kFloat32, {one ? 1 : g.out_channels}, "slope", device);
    p.slopes = slope_view.as<const float>();
    p.slope_step = one ? 0 : 1;
  }
  if (moment_view) {
    check.that(!residual_view && p.activation == TileActivation::kNone, "moments",
               "be None where a residual or an activation follows", moment_view->text());
    p.parts = sparse_conv2d::moment_parts(p);
    check_array(*moment_view, DType::kFloat32, {p.batch, p.parts, 3, g.out_channels}, "moments",
                device);
    p.moments = moment_view->as<float>();
  }
  if (x.described || y.numel() == 0) return;

  // ---- Convolve ---------------------------------------------------------------------------------
  p.metadata = metadata_view.as<const uint32_t>();
  p.bias = bias_view ? bias_view->as<const float>() : nullptr;
  p.residual = residual_view ? residual_view->data : nullptr;
  p.output = y.data;
  const py::gil_scoped_release released;
#ifdef GANSPARSE_WITH_CUDA
  sparse_conv2d::run_cuda(p, tile_type(dtype), device.index, stream);
#else
  (void)stream;
  refuse_cuda();
#endif
}

// P of the moments of pictures [N, C, height, width].
int64_t tile_parts(const std::vector<int64_t>& geometry, int64_t height, int64_t width,
                   bool columns) {
  TileProblem p{};
  p.columns = columns;
  p.g = check_geometry(geometry);
  p.batch = 1, p.height = height, p.width = width;
  p.out_height = (height * p.g.upscale + p.g.growth_h) / p.g.stride;
  p.out_width = (width * p.g.upscale + p.g.growth_w) / p.g.stride;
  return p.out_height < 1 || p.out_width < 1 ? 1 : sparse_conv2d::moment_parts(p);
}

// Gradient of weight.values of block tiles. Without pictures nothing is written.
void convolve_tiles_gradient(const py::object& input, const py::object& values,
                             const py::object& places, const py::object& starts,
                             const std::vector<int64_t>& geometry, const py::object& grad,
                             const py::object& output, uintptr_t stream) {
  const char* op = check.op();
  const TensorView x = view_of(input, op, "input");
  const TensorView value_view = view_of(values, op, "weight.values");
  const TensorView grad_view = view_of(grad, op, "grad");
  const TensorView y = view_of(output, op, "output");
  TileProblem p{};
  const DType dtype = take_tiles(x, value_view, view_of(places, op, "weight.places"),
                                 view_of(starts, op, "weight.starts"), geometry, &p);
  const Geometry& g = p.g;
  check.that(!p.two_of_four && !p.columns, "weight.values", "be of block tiles", value_view.text());
  check.that(g.out_channels % 8 == 0, "weight.geometry.out_channels",
             "be filled up to a multiple of 8", std::to_string(g.out_channels));
  check_shape(grad_view, dtype, {p.batch, g.out_channels, p.out_height, p.out_width}, "grad",
              x.device);
  check_channels_last(grad_view, "grad");
  check_array(y, dtype, {p.steps, g.vector / 16, 2, 32, 8}, "output", x.device);
  check_aligned(y, "output");
  if (x.described || y.numel() == 0 || grad_view.numel() == 0) return;
  const py::gil_scoped_release released;
#ifdef GANSPARSE_WITH_CUDA
  sparse_conv2d::run_gradient_cuda(p, tile_type(dtype), grad_view.data, y.data, x.device.index,
                                   stream);
#else
  (void)stream;
  refuse_cuda();
#endif
}

}  // namespace

std::vector<std::string> bind_sparse_conv2d(py::module_& module) {
  module.def("sparse_conv2d", &convolve, py::arg("input"), py::arg("values"), py::arg("offsets"),
             py::arg("starts"), py::arg("rows"), py::arg("geometry"), py::arg("bias"),
             py::arg("residual"), py::arg("activation"), py::arg("slope"), py::arg("out"),
             py::arg("stream") = uintptr_t{0});
  module.def("sparse_conv2d_gradient", &convolve_gradient, py::arg("input"), py::arg("offsets"),
             py::arg("starts"), py::arg("rows"), py::arg("geometry"), py::arg("grad"),
             py::arg("output"), py::arg("stream") = uintptr_t{0});
  module.def("winograd_conv2d", &convolve_winograd, py::arg("input"), py::arg("values"),
             py::arg("geometry"), py::arg("bias"), py::arg("residual"), py::arg("activation"),
             py::arg("slope"), py::arg("out"));
  module.def("sparse_conv2d_tiles", &convolve_tiles, py::arg("input"), py::arg("values"),
             py::arg("metadata"), py::arg("places"), py::arg("starts"), py::arg("geometry"),
             py::arg("bias"), py::arg("residual"), py::arg("activation"), py::arg("slope"),
             py::arg("output"), py::arg("stream") = uintptr_t{0}, py::arg("moments") = py::none());
  module.def("sparse_conv2d_tiles_parts", &tile_parts, py::arg("geometry"), py::arg("height"),
             py::arg("width"), py::arg("columns") = false);
  module.def("sparse_conv2d_tiles_gradient", &convolve_tiles_gradient, py::arg("input"),
             py::arg("values"), py::arg("places"), py::arg("starts"), py::arg("geometry"),
             py::arg("grad"), py::arg("output"), py::arg("stream") = uintptr_t{0});
  return {
      "plain",
#ifdef GANSPARSE_WITH_X86
      "avx2",
      "avx512",
#endif
#ifdef GANSPARSE_WITH_CUDA
      "cuda",
#endif
  };
}

}  // namespace gansparse
