// SPDX-License-Identifier: Apache-2.0
#include "common/python_args.h"

#include <pybind11/stl.h>

#include "common/check.h"
#include "common/dlpack.h"

namespace py = pybind11;

namespace gansparse {
namespace {

std::optional<DType> dtype_of(dlpack::DataType t) {
  if (t.lanes != 1) return std::nullopt;
  const auto is = [t](uint8_t code, uint8_t bits) { return t.code == code && t.bits == bits; };
  if (is(dlpack::kFloat, 32)) return DType::kFloat32;
  if (is(dlpack::kFloat, 64)) return DType::kFloat64;
  if (is(dlpack::kFloat, 16)) return DType::kFloat16;
  if (is(dlpack::kBfloat, 16)) return DType::kBFloat16;
  if (is(dlpack::kBool, 8)) return DType::kBool;
  if (is(dlpack::kUInt, 8)) return DType::kUInt8;
  if (is(dlpack::kInt, 16)) return DType::kInt16;
  if (is(dlpack::kInt, 32)) return DType::kInt32;
  if (is(dlpack::kInt, 64)) return DType::kInt64;
  return std::nullopt;
}

TensorView view_of_dlpack(const dlpack::Tensor& t, const char* op, const std::string& argument) {
  TensorView view;
  if (t.device.type == dlpack::kCuda) {
    view.device = {DeviceType::kCuda, t.device.index};
  } else if (t.device.type != dlpack::kCpu) {
    refuse(op, argument, "be on the CPU or a CUDA device",
           "DLPack device type " + std::to_string(t.device.type));
  }
  if (t.ndim > kMaxDims) {
    refuse(op, argument, "have at most " + std::to_string(kMaxDims) + " dimensions",
           std::to_string(t.ndim));
  }
  const std::optional<DType> dtype = dtype_of(t.dtype);
  if (!dtype) {
    refuse(op, argument, "have a dtype that gansparse knows (float16 to float64, uint8, bool, int)",
           "DLPack type code " + std::to_string(t.dtype.code) + ", " +
               std::to_string(t.dtype.bits) + " bits");
  }
  view.dtype = *dtype;
  view.ndim = t.ndim;
  int64_t row_major = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    view.shape[i] = t.shape[i];
    view.strides[i] = t.strides ? t.strides[i] : row_major;
    row_major *= t.shape[i];
  }
  view.data = t.data ? static_cast<char*>(t.data) + t.byte_offset : nullptr;
  if (view.data == nullptr && view.numel() > 0) {
    refuse(op, argument, "have memory of its own", view.text() + " without any");
  }
  return view;
}

// The exchange table of the array's type, or null. torch's type is asked once.
const dlpack::ExchangeApi* exchange_api(py::handle array) {
  struct Known {
    PyTypeObject* type = nullptr;
    const dlpack::ExchangeApi* api = nullptr;
  };
  static Known last;  // guarded by the GIL
  PyTypeObject* type = Py_TYPE(array.ptr());
  if (type == last.type) return last.api;
  const dlpack::ExchangeApi* api = nullptr;
  if (py::hasattr(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__")) {
    py::object capsule =
        py::handle(reinterpret_cast<PyObject*>(type)).attr("__dlpack_c_exchange_api__");
    api = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api == nullptr) throw py::error_already_set();
    while (api != nullptr && api->version.major != 1) api = api->previous;
    if (api != nullptr && api->tensor_from_py_object_no_sync == nullptr) api = nullptr;
  }
  // The type is remembered by address, so it must not be freed and its address used again.
  Py_INCREF(type);
  Py_XDECREF(last.type);
  last = {type, api};
  return api;
}

// Makes a CUDA device torch's current one while it lives.
class TorchDevice {
 public:
  explicit TorchDevice(int index)
      : context_(py::module_::import("torch").attr("cuda").attr("device")(index)) {
    context_.attr("__enter__")();
  }
  ~TorchDevice() {
    try {
      context_.attr("__exit__")(py::none(), py::none(), py::none());
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("gansparse, going back to the former device");
    }
  }
  TorchDevice(const TorchDevice&) = delete;
  TorchDevice& operator=(const TorchDevice&) = delete;

 private:
  py::object context_;
};

// The way every producer knows. The view outlives the capsule, as the array itself stays alive.
TensorView view_by_capsule(py::handle array, const char* op, const std::string& argument) {
  // torch refuses to export what requires grad. Our ops are not differentiated through this path.
  py::object exported = py::hasattr(array, "detach") ? array.attr("detach")()
                                                     : py::reinterpret_borrow<py::object>(array);
  const auto [device_type, device_index] =
      exported.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  py::object capsule;
  if (device_type == dlpack::kCuda) {
    // torch 2.9 exports nothing from a device that is not current, and has no exchange table yet.
    const TorchDevice current(device_index);
    // -1: no synchronisation between streams; the caller's stream is passed to the op.
    capsule = exported.attr("__dlpack__")(py::arg("stream") = -1);
  } else {
    capsule = exported.attr("__dlpack__")();
  }
  auto* managed =
      static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  return view_of_dlpack(managed->tensor, op, argument);
}

DType dtype_named(const std::string& name) {
  for (DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64,
                      DType::kUInt8, DType::kBool, DType::kInt16, DType::kInt32, DType::kInt64}) {
    if (name == name_of(dtype)) return dtype;
  }
  throw InputError("TensorSpec: dtype must be one that gansparse knows, got " + name);
}

TensorSpec make_spec(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                     const std::string& dtype, const std::string& device_type, int device_index) {
  if (shape.size() != strides.size() || shape.size() > kMaxDims) {
    throw InputError("TensorSpec: shape and strides must have one length, at most " +
                     std::to_string(kMaxDims) + ", got " + std::to_string(shape.size()) + " and " +
                     std::to_string(strides.size()));
  }
  TensorSpec spec;
  spec.view.described = true;
  spec.view.dtype = dtype_named(dtype);
  spec.view.device = {device_type == "cuda" ? DeviceType::kCuda : DeviceType::kCpu, device_index};
  spec.view.ndim = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), spec.view.shape.begin());
  std::copy(strides.begin(), strides.end(), spec.view.strides.begin());
  return spec;
}

py::sequence sequence_of(py::handle list, const char* op, const std::string& argument) {
  if (!py::isinstance<py::list>(list) && !py::isinstance<py::tuple>(list)) {
    refuse(op, argument, "be a list of arrays", py::str(py::type::of(list).attr("__name__")));
  }
  return py::reinterpret_borrow<py::sequence>(list);
}

std::string indexed(const std::string& argument, size_t i) {
  return argument + "[" + std::to_string(i) + "]";
}

}  // namespace

TensorView view_of(py::handle array, const char* op, const std::string& argument) {
  if (const dlpack::ExchangeApi* api = exchange_api(array)) {
    dlpack::Tensor tensor{};
    if (api->tensor_from_py_object_no_sync(array.ptr(), &tensor) != 0) {
      throw py::error_already_set();
    }
    return view_of_dlpack(tensor, op, argument);
  }
  if (py::isinstance<TensorSpec>(array)) return array.cast<const TensorSpec&>().view;
  if (!py::hasattr(array, "__dlpack__")) {
    refuse(op, argument, "be an array (torch, CuPy or NumPy)",
           py::str(py::type::of(array).attr("__name__")));
  }
  return view_by_capsule(array, op, argument);
}

std::optional<TensorView> optional_view_of(py::handle array, const char* op,
                                           const std::string& argument) {
  if (array.is_none()) return std::nullopt;
  return view_of(array, op, argument);
}

std::vector<TensorView> views_of(py::handle list, const char* op, const std::string& argument) {
  const py::sequence items = sequence_of(list, op, argument);
  std::vector<TensorView> views;
  views.reserve(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    views.push_back(view_of(py::object(items[i]), op, indexed(argument, i)));
  }
  return views;
}

std::vector<std::optional<TensorView>> optional_views_of(py::handle list, const char* op,
                                                         const std::string& argument) {
  if (list.is_none()) return {};
  const py::sequence items = sequence_of(list, op, argument);
  std::vector<std::optional<TensorView>> views;
  views.reserve(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    views.push_back(optional_view_of(py::object(items[i]), op, indexed(argument, i)));
  }
  return views;
}

void bind_tensor_spec(py::module_& module) {
  py::class_<TensorSpec>(module, "TensorSpec",
                         "Describes an array without memory, so that only the checks run.")
      .def(py::init(&make_spec), py::arg("shape"), py::arg("strides"), py::arg("dtype"),
           py::arg("device_type"), py::arg("device_index"));
}

}  // namespace gansparse
