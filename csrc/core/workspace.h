// Scratch of CUDA kernels. Ops allocate nothing on a device: the caller passes an array, or none
// where the op runs on a CPU kernel, which finds its own.
#pragma once

#include <span>

#include "core/check.h"

namespace pixleap {

// How many float64 numbers there are, at least `least` of them if `like` is on a CUDA device; 0
// where nothing was passed.
inline int64_t workspace_size(const Check& check, std::span<const Out> scratch, const View& like,
                              int64_t least) {
  check.value(scratch.size() <= 1, "scratch", "at most one array",
              static_cast<int64_t>(scratch.size()));
  if (scratch.empty()) {
    check.value(like.device.type == DeviceType::cpu, "scratch", "an array of float64",
                std::string("none"));
    return 0;
  }
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
