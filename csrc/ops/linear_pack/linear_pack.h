// Weights (N, K) of a linear layer to panels of 16 output features, once, for `linear`.
//   float32:   packed[p, k, n]     = weight[16 p + n, k]        (P, K, 16)
//   bfloat16:  packed[p, k2, n, j] = weight[16 p + n, 2 k2 + j] (P, ceil(K / 2), 16, 2)
// P = ceil(N / 16); what lies outside the weights is zero. One layout for every instruction set.
#pragma once

#include <string_view>

#include "core/dispatch.h"

namespace pixleap {

constexpr int64_t kLinearPanel = 16;  // output features per panel

struct LinearPackParams {
  const void* weight;  // (N, K) float32, bfloat16 or float16, last stride 1
  int64_t stride;      // of N, in elements
  DType dtype;         // of weight
  int64_t n, k;
  void* packed;  // as above, contiguous
  DType packed_dtype;
};

// `dtype`: "" (what `out` has), "float32" or "bfloat16".
void linear_pack(const Out& out, const View& weight, std::string_view dtype);

PIXLEAP_DECLARE_KERNELS(linear_pack, LinearPackParams)

}  // namespace pixleap
