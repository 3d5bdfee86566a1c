// SPDX-License-Identifier: Apache-2.0
// The CUDA runtime of GPUs that are not there, to be loaded before torch's: $EMULATED_GPUS (2) of
// compute capability 9.0 whose memory is the host's, and whose streams do everything at once. It
// runs no kernel: torch's own are machine.py's, ours the emulator's. Also in place of the driver's
// library, of which torch only wants that it is there.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kMemory = size_t{8} << 30;  // of each device
constexpr int kMost = 8, kProcessors = 132, kShared = 232448;

struct Block {
  size_t bytes;
  int device;
};

thread_local int device = 0;
thread_local cudaError_t last = cudaSuccess;
std::mutex lock;
std::map<const char*, Block> blocks;  // by address
size_t used[kMost];

int devices() {
  const char* asked = std::getenv("EMULATED_GPUS");
  return asked == nullptr ? 2 : std::atoi(asked);
}
cudaError_t fails(cudaError_t error) { return last = error; }
Clock::time_point& time_of(cudaEvent_t event) {
  return *reinterpret_cast<Clock::time_point*>(event);
}

}  // namespace

#define DOES_NOTHING(...) \
  cudaError_t __VA_ARGS__ { return cudaSuccess; }

extern "C" {

int emulated_gpu_captures = 0;  // set by machine.py

// ---- Devices and errors -------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) { return *count = devices(), cudaSuccess; }
cudaError_t cudaGetDevice(int* current) { return *current = device, cudaSuccess; }
cudaError_t cudaSetDevice(int wanted) {
  if (wanted < 0 || wanted >= devices()) return fails(cudaErrorInvalidDevice);
  return device = wanted, cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int which) {
  *p = {};
  std::strcpy(p->name, "Emulated GPU");
  p->major = 9, p->multiProcessorCount = kProcessors, p->totalGlobalMem = kMemory;
  p->warpSize = 32, p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = kShared;
  p->sharedMemPerMultiprocessor = kShared + 1024, p->l2CacheSize = 50 << 20;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxGridSize[0] = 0x7fffffff, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->pciBusID = which + 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  const std::map<int, int> known = {{cudaDevAttrMultiProcessorCount, kProcessors},
                                    {cudaDevAttrMaxSharedMemoryPerBlockOptin, kShared},
                                    {cudaDevAttrComputeCapabilityMajor, 9},
                                    {cudaDevAttrMaxThreadsPerBlock, 1024}};
  const auto found = known.find(which);
  return *value = found == known.end() ? 0 : found->second, cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int which) {
  return std::snprintf(text, static_cast<size_t>(size), "0000:%02x:00.0", which + 1), cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  return last = cudaSuccess, error;
}
cudaError_t cudaPeekAtLastError() { return last; }
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorEmulated"; }
const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  if (error == cudaErrorInvalidDeviceFunction)
    return "no kernel of torch's runs on an emulated GPU";
  return error == cudaSuccess ? "no error" : "an error of the emulated GPU";
}

// ---- Memory: NaN until it is written ------------------------------------------------------------

cudaError_t cudaMalloc(void** to, size_t bytes) {
  const std::lock_guard<std::mutex> held(lock);
  *to = nullptr;
  if (used[device] + bytes > kMemory) return fails(cudaErrorMemoryAllocation);
  *to = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  std::memset(*to, 0xff, bytes);
  blocks[static_cast<char*>(*to)] = {bytes, device};
  used[device] += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  const std::lock_guard<std::mutex> held(lock);
  const auto found = blocks.find(static_cast<char*>(memory));
  if (found == blocks.end()) return cudaSuccess;
  used[found->second.device] -= found->second.bytes;
  blocks.erase(found);
  return std::free(memory), cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* left, size_t* all) {
  *all = kMemory;
  return *left = kMemory - used[device], cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* pointer) {
  *found = {};
  const std::lock_guard<std::mutex> held(lock);
  const auto* at = static_cast<const char*>(pointer);
  auto block = blocks.upper_bound(at);
  if (block == blocks.begin() || at >= (--block)->first + block->second.bytes) return cudaSuccess;
  found->type = cudaMemoryTypeDevice, found->device = block->second.device;
  return found->devicePointer = const_cast<void*>(pointer), cudaSuccess;
}
cudaError_t cudaHostAlloc(void** to, size_t bytes, unsigned) {
  return *to = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096), cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return std::memmove(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  return std::memmove(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t) {
  return std::memmove(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return std::memset(to, value, bytes), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return std::memset(to, value, bytes), cudaSuccess;
}
DOES_NOTHING(cudaHostRegister(void*, size_t, unsigned))
DOES_NOTHING(cudaHostUnregister(void*))

// ---- Streams, events, captures ------------------------------------------------------------------

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  static uintptr_t next = 0;
  return *stream = reinterpret_cast<cudaStream_t>(next += 4096), cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  return *priority = 0, cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = emulated_gpu_captures ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t*, const cudaGraphNode_t**,
                                     const cudaGraphEdgeData**, size_t*) {
  if (id != nullptr) *id = 1;
  return cudaStreamIsCapturing(stream, status);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = reinterpret_cast<cudaEvent_t>(new Clock::time_point(Clock::now())), cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete &time_of(event), cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  return time_of(event) = Clock::now(), cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  *ms = std::chrono::duration<float, std::milli>(time_of(to) - time_of(from)).count();
  return cudaSuccess;
}
DOES_NOTHING(cudaDeviceSynchronize())
DOES_NOTHING(cudaEventQuery(cudaEvent_t))
DOES_NOTHING(cudaEventSynchronize(cudaEvent_t))
DOES_NOTHING(cudaStreamDestroy(cudaStream_t))
DOES_NOTHING(cudaStreamQuery(cudaStream_t))
DOES_NOTHING(cudaStreamSynchronize(cudaStream_t))
DOES_NOTHING(cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned))
DOES_NOTHING(cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*))

// ---- Kernels of torch's own: none ---------------------------------------------------------------

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  *found = {};
  return found->maxThreadsPerBlock = 1024, found->binaryVersion = 90, cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  return fails(cudaErrorInvalidDeviceFunction);
}
cudaError_t __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, cudaStream_t) {
  return fails(cudaErrorInvalidDeviceFunction);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  return fails(cudaErrorInvalidDeviceFunction);
}

// ---- The driver ---------------------------------------------------------------------------------

int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  return *flags = 0, *active = 1, 0;
}
static int unknown() { return 999; }
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** entry, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  if (result != nullptr) *result = cudaDriverEntryPointSuccess;
  return *entry = reinterpret_cast<void*>(&unknown), cudaSuccess;
}

}  // extern "C"
