// What every .cu shares: element types, grid sizes and a launch on the caller's stream.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
#include <string>

#include "core/check.h"
#include "core/view.h"
#if defined(PIXLEAP_CUDA_EMULATE)
#include "cuda/emulate/engine.h"
#endif

namespace pixleap {

template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

__device__ inline float to_accumulate(float x) { return x; }
__device__ inline double to_accumulate(double x) { return x; }
__device__ inline float to_accumulate(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_accumulate(__half x) { return __half2float(x); }
__device__ inline void from_accumulate(float x, float& y) { y = x; }
__device__ inline void from_accumulate(double x, double& y) { y = x; }
__device__ inline void from_accumulate(float x, __nv_bfloat16& y) { y = __float2bfloat16(x); }
__device__ inline void from_accumulate(float x, __half& y) { y = __float2half(x); }

// An element of an array whose type is known when the kernel runs.
__device__ inline float element_at(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::bf16:
      return to_accumulate(static_cast<const __nv_bfloat16*>(data)[i]);
    case DType::f16:
      return to_accumulate(static_cast<const __half*>(data)[i]);
    case DType::i8:
      return static_cast<float>(static_cast<const int8_t*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

template <class F>
void with_cuda_type(DType t, F&& f) {
  switch (t) {
    case DType::f32:
      return f.template operator()<float>();
    case DType::f64:
      return f.template operator()<double>();
    case DType::bf16:
      return f.template operator()<__nv_bfloat16>();
    case DType::f16:
      return f.template operator()<__half>();
    default:
      return;
  }
}

inline unsigned grid_for(int64_t items, int block) {
  const int64_t blocks = (items + block - 1) / block;
  return static_cast<unsigned>(blocks < 132 * 16 ? blocks : 132 * 16);  // grid-stride loops
}

// Dynamic shared memory of the block, aligned to 16 bytes. Kernels take it from here, not from an
// `extern __shared__` of their own: the emulation has no other way to give it.
__device__ inline unsigned char* dynamic_shared() {
#if defined(PIXLEAP_CUDA_EMULATE)
  return emulate::dynamic_shared();
#else
  extern __shared__ uint4 pixleap_dynamic_shared[];
  return reinterpret_cast<unsigned char*>(pixleap_dynamic_shared);
#endif
}

// Whether the device takes kernels of sm_90a, and they were compiled.
inline bool runs_wgmma(const Device& device) {
#if defined(PIXLEAP_CUDA_EMULATE)
  static_cast<void>(device);
  return emulate::capability() == 9;
#elif defined(PIXLEAP_CUDA_SM90A)
  static std::atomic<signed char> known[64];  // 0, or the capability's major number
  const auto ask = [&] {
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index);
    return major;
  };
  if (device.index < 0 || device.index >= 64) return ask() == 9;
  std::atomic<signed char>& major = known[device.index];
  if (major == 0) major = static_cast<signed char>(ask());
  return major == 9;
#else
  static_cast<void>(device);
  return false;
#endif
}

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;  // of dynamic_shared()
};

// The only place that launches. `device` is that of the caller's arrays, with their stream.
template <class Kernel, class... Args>
void launch(Kernel kernel, const LaunchShape& shape, const Device& device, const Args&... args) {
  if (shape.grid.x * shape.grid.y * shape.grid.z == 0) return;  // CUDA refuses an empty grid
#if defined(PIXLEAP_CUDA_EMULATE)
  static_cast<void>(device);
  emulate::run_grid(shape.grid, shape.block, shape.shared_bytes, [&] { kernel(args...); });
#else
  int current = 0;
  cudaGetDevice(&current);
  if (current != device.index) cudaSetDevice(device.index);
  // Above 48 KiB, static shared memory included, it has to be asked for.
  if (shape.shared_bytes > 32 * 1024)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shape.shared_bytes));
  const auto& [grid, block, bytes] = shape;
  // clang-format off: it takes >>> apart
  kernel<<<grid, block, bytes, static_cast<cudaStream_t>(device.stream)>>>(args...);
  // clang-format on
  const cudaError_t error = cudaGetLastError();
  if (current != device.index) cudaSetDevice(current);
  if (error != cudaSuccess)
    throw BackendError(std::string("CUDA launch failed: ") + cudaGetErrorString(error));
#endif
}

template <class Kernel, class... Args>
void launch(Kernel kernel, unsigned grid, int block, const Device& device, const Args&... args) {
  launch(kernel, LaunchShape{dim3(grid), dim3(static_cast<unsigned>(block))}, device, args...);
}

}  // namespace pixleap
