// From device and instruction set to a kernel. A front owns one table per op:
//   static constexpr KernelTable<FooParams> kernels = PIXLEAP_KERNELS(foo);
//   kernels.run(check, params, out);
// The highest ISA that the machine has, the caller allows (PIXLEAP_ISA, set_isa) and the op
// implements is taken; an op without an AMX kernel runs its AVX-512 one under PIXLEAP_ISA=amx.
#pragma once

#include <string>

#include "core/check.h"
#include "core/cpu_features.h"
#include "core/view.h"

namespace pixleap {

#if defined(PIXLEAP_CUDA_EMULATE)
namespace emulate {
bool enabled();  // CPU arrays go to the CUDA kernels: see cuda/emulate/engine.h
}
#endif

template <class Params>
struct KernelTable {
  using Kernel = void (*)(const Params&);
  using CudaKernel = void (*)(const Params&, const Device&);
  Kernel cpu[4];  // indexed by Isa
  CudaKernel cuda;

  void run(const Check& check, const Params& params, const View& like) const {
    if (like.device.type == DeviceType::cuda) {
      if (!cuda)
        throw BackendError(std::string(check.op()) + ": argument '" + like.name +
                           "' is on a CUDA device, but this build has no CUDA kernel of the op");
      return cuda(params, like.device);
    }
#if defined(PIXLEAP_CUDA_EMULATE)
    if (cuda && emulate::enabled()) return cuda(params, like.device);
#endif
    int isa = static_cast<int>(active_isa());
    while (!cpu[isa]) --isa;  // scalar always exists
    cpu[isa](params);
  }
};

}  // namespace pixleap

#if defined(PIXLEAP_X86)
#define PIXLEAP_DECLARE_CPU(op, Params) \
  void op##_scalar(const Params&);      \
  void op##_avx2(const Params&);        \
  void op##_avx512(const Params&);
#define PIXLEAP_CPU_KERNELS(op) op##_scalar, op##_avx2, op##_avx512
#define PIXLEAP_AMX_KERNEL(op) op##_amx
#else
#define PIXLEAP_DECLARE_CPU(op, Params) void op##_scalar(const Params&);
#define PIXLEAP_CPU_KERNELS(op) op##_scalar, nullptr, nullptr
#define PIXLEAP_AMX_KERNEL(op) nullptr
#endif

#if defined(PIXLEAP_CUDA) || defined(PIXLEAP_CUDA_EMULATE)
#define PIXLEAP_CUDA_KERNEL(op) op##_cuda
#else
#define PIXLEAP_CUDA_KERNEL(op) nullptr
#endif

// In <op>.h: declares the kernels that the ISA files and the .cu define.
#define PIXLEAP_DECLARE_KERNELS(op, Params) \
  PIXLEAP_DECLARE_CPU(op, Params)           \
  void op##_amx(const Params&);             \
  void op##_cuda(const Params&, const Device&);

// In <op>.cpp: the table, by which files the op has besides scalar, avx2 and avx512.
#define PIXLEAP_KERNELS(op) {{PIXLEAP_CPU_KERNELS(op), nullptr}, nullptr}
#define PIXLEAP_KERNELS_CUDA(op) {{PIXLEAP_CPU_KERNELS(op), nullptr}, PIXLEAP_CUDA_KERNEL(op)}
#define PIXLEAP_KERNELS_AMX(op) {{PIXLEAP_CPU_KERNELS(op), PIXLEAP_AMX_KERNEL(op)}, nullptr}
#define PIXLEAP_KERNELS_AMX_CUDA(op) \
  {{PIXLEAP_CPU_KERNELS(op), PIXLEAP_AMX_KERNEL(op)}, PIXLEAP_CUDA_KERNEL(op)}

// In kernel.inl: the name of the kernel for the ISA this file is compiled for.
#define PIXLEAP_PASTE2(a, b) a##_##b
#define PIXLEAP_PASTE(a, b) PIXLEAP_PASTE2(a, b)
#define PIXLEAP_KERNEL(op) PIXLEAP_PASTE(op, PIXLEAP_ISA_NAME)
