// Standard normals of a Philox stream: out[e] = normal(seed, offset, first_element + e).
#pragma once

#include "core/dispatch.h"

namespace pixleap {

struct RandomNormalParams {
  DType dtype;
  void* out;  // (count,)
  int64_t count;
  uint64_t seed, offset, first_element;
};

// `count`: how many numbers the caller expects `out` to hold.
void random_normal(const Out& out, int64_t count, int64_t seed, int64_t offset,
                   int64_t first_element);

PIXLEAP_DECLARE_KERNELS(random_normal, RandomNormalParams)

}  // namespace pixleap
