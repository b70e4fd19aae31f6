// Weights (N, K) of a linear layer to panels of 16 output features, once, for `linear`.
//   float32:   packed[p, k, n]     = weight[16 p + n, k]                (P, K, 16)
//   bfloat16:  packed[p, k2, n, j] = weight[16 p + n, 2 k2 + j]         (P, ceil(K / 2), 16, 2)
//   int8:      packed[p, k4, n, j] = round(weight[16 p + n, 4 k4 + j] / scales[16 p + n]),
//              scales[n] = max over k of |weight[n, k]| / 127           (P, ceil(K / 4), 16, 4)
// P = ceil(N / 16); what lies outside the weights is zero. One layout for every instruction set:
// 32 bits along K are one lane of any vector, and the operand of bfloat16 and int8 dot products.
#pragma once

#include <span>
#include <string_view>

#include "core/dispatch.h"

namespace pixleap {

constexpr int64_t kLinearPanel = 16;  // output features per panel

// Steps of K that lie side by side.
static constexpr int64_t linear_steps(DType packed) {
  return packed == DType::f32 ? 1 : packed == DType::bf16 ? 2 : 4;
}
static constexpr int64_t linear_padded_depth(DType packed, int64_t k) {
  const int64_t steps = linear_steps(packed);
  return (k + steps - 1) / steps * steps;
}

struct LinearPackParams {
  const void* weight;  // (N, K) float32, bfloat16 or float16, last stride 1
  int64_t stride;      // of N, in elements
  DType dtype;         // of weight
  int64_t n, k;
  void* packed;  // as above, contiguous
  DType packed_dtype;
  float* scales;  // (N,) contiguous, of int8
};

// `scales`: one array if int8, else none. `dtype`: "" (what `out` has), "float32", "bfloat16" or
// "int8".
void linear_pack(const Out& out, std::span<const Out> scales, const View& weight,
                 std::string_view dtype);

// The shape and dtype that `packed` must have for weights (n, k).
void check_packed(const Check& check, const View& packed, int64_t n, int64_t k);

PIXLEAP_DECLARE_KERNELS(linear_pack, LinearPackParams)

}  // namespace pixleap
