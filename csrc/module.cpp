// SPDX-License-Identifier: Apache-2.0
// The extension module gansparse._C: collects the rooms' bindings and tells what was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/check.h"
#include "common/cpu_features.h"
#include "common/device_memory.h"
#include "common/parallel.h"
#include "common/python_args.h"
#include "ops/rooms.h"
#ifdef GANSPARSE_WITH_CUDA
#include "common/cuda_devices.h"
#endif

namespace py = pybind11;

namespace gansparse {
namespace {

void translate_exceptions(std::exception_ptr thrown) {
  if (!thrown) return;
  try {
    std::rethrow_exception(thrown);
  } catch (const InputError& error) {
    const py::object type = py::module_::import("gansparse.errors").attr("InputError");
    py::set_error(type, error.what());
  } catch (const DeviceError& error) {
    py::set_error(PyExc_RuntimeError, error.what());
  }
}

std::vector<std::string> names(const std::vector<SimdLevel>& levels) {
  std::vector<std::string> out;
  for (SimdLevel level : levels) out.emplace_back(name_of(level));
  return out;
}

py::dict build_info() {
  py::dict info;
  info["version"] = GANSPARSE_VERSION;
  info["compiler"] = __VERSION__;
#ifdef GANSPARSE_WITH_X86
  info["simd_built"] = std::vector<std::string>{"plain", "avx2", "avx512"};
#else
  info["simd_built"] = std::vector<std::string>{"plain"};
#endif
  info["simd_available"] = names(available_simd_levels());
  info["simd"] = name_of(simd_level());
  info["native_bf16"] = native_bf16();
  info["openmp"] = openmp_runtime();
  info["threads"] = max_threads();
#ifdef GANSPARSE_WITH_CUDA
  info["cuda"] = true;
  info["cuda_architectures"] = GANSPARSE_CUDA_ARCHITECTURES;
  info["nvcc"] = GANSPARSE_NVCC_VERSION;
#else
  info["cuda"] = false;
  info["cuda_architectures"] = "";
  info["nvcc"] = "";
#endif
  return info;
}

py::dict cuda_devices() {
  py::list devices;
  std::string problem = "built without CUDA";
  int driver = 0;
#ifdef GANSPARSE_WITH_CUDA
  const CudaDevices found = find_cuda_devices();
  problem = found.problem;
  driver = found.driver;
  for (const CudaDevice& device : found.devices) {
    py::dict entry;
    entry["name"] = device.name;
    entry["capability"] = py::make_tuple(device.major, device.minor);
    entry["memory_bytes"] = device.memory_bytes;
    devices.append(entry);
  }
#endif
  py::dict result;
  result["devices"] = devices;
  result["problem"] = problem;
  result["driver"] = driver;
  return result;
}

void set_device_memory_source(const py::function& take, const py::function& give_back) {
  // Kept for good: when static objects go, there is no interpreter any more to let go of them.
  const auto* source = new std::pair<py::function, py::function>(take, give_back);
  device_memory_source().take = [source](size_t bytes, int device, uintptr_t stream) {
    const py::gil_scoped_acquire held;
    return reinterpret_cast<void*>(source->first(bytes, device, stream).cast<uintptr_t>());
  };
  device_memory_source().give_back = [source](void* memory) {
    const py::gil_scoped_acquire held;
    try {
      source->second(reinterpret_cast<uintptr_t>(memory));
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("gansparse, giving device memory back");
    }
  };
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of gansparse. It knows no torch; arrays come in through DLPack.";
  py::register_exception_translator(&translate_exceptions);

  m.def("build_info", &build_info, "What was built, and what is in use here, as a dict.");
  m.def("cuda_devices", &cuda_devices,
        "Devices that the CUDA runtime finds, or why it finds none, and the newest CUDA that the "
        "driver knows (1000 major + 10 minor; 0: no driver).");
  m.def("simd_level", [] { return name_of(simd_level()); });
  m.def("set_simd_level", &set_simd_level, py::arg("name"),
        "Use this instruction set from now on (tests and benchmarks).");
  m.def("set_device_memory_source", &set_device_memory_source, py::arg("take"),
        py::arg("give_back"),
        "Where kernels have memory from: take(bytes, device, stream) gives an address, "
        "give_back(address) takes it again.");
  bind_tensor_spec(m);

  py::dict ops;  // op → the implementations this build has
  for (const Room& room : kRooms) ops[room.op] = room.bind(m);
  m.attr("OPS") = ops;
}

}  // namespace gansparse
