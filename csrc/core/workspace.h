// Scratch of CUDA kernels. Ops allocate nothing on a device: the caller passes an array, or none
// where the op runs on a CPU kernel, which finds its own.
#pragma once

#include <span>

#include "core/dispatch.h"

namespace pixleap {

// How many float64 numbers there are, at least `least`, if a CUDA kernel will run; 0 else.
inline int64_t workspace_size(const Check& check, std::span<const Out> scratch, const View& like,
                              int64_t least) {
  bool wanted = like.device.type == DeviceType::cuda;
#if defined(PIXLEAP_CUDA_EMULATE)
  wanted = wanted || emulate::enabled();
#endif
  if (!wanted) return 0;
  check.value(scratch.size() == 1, "scratch", "one array", static_cast<int64_t>(scratch.size()));
  const Out& v = scratch[0];
  check.dtype(v, {DType::f64});
  check.ndim(v, 1);
  check.contiguous(v);
  check.same_device(v, like);
  check.value(v.size(0) >= least, "scratch", "at least " + std::to_string(least) + " numbers",
              v.size(0));
  return v.size(0);
}

}  // namespace pixleap
