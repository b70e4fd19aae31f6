// A linear layer on weights packed by linear_pack, with its epilogue in the same pass.
//   out = residual + gate[b] * activation(x W^T + bias), W[n, k] = scales[n] packed[n, k] if int8
#pragma once

#include <string_view>

#include "core/dispatch.h"
#include "ops/linear_pack/linear_pack.h"  // the layout

namespace pixleap {

enum class Activation { none, gelu, gelu_tanh, silu };

struct LinearParams {
  int64_t batch, length, k, n;
  const void* x;         // (batch, length, k), last stride 1
  int64_t x_strides[2];  // of batch and length, in elements
  DType x_dtype;
  const void* packed;  // (P, k, 16) float32, (P, ceil(k / 2), 16, 2) bfloat16 or
                       // (P, ceil(k / 4), 16, 4) int8, contiguous
  DType packed_dtype;
  const float* scales;  // (n,) contiguous for int8, else null
  const void* bias;     // (n,) contiguous, or null
  DType bias_dtype;
  Activation activation;
  const void* gate;  // (batch, n), last stride 1, or null
  int64_t gate_stride;
  DType gate_dtype;
  const void* residual;  // (batch, length, n) of out's dtype, last stride 1, or null; may be `out`
  int64_t residual_strides[2];
  void* out;  // (batch, length, n), last stride 1
  int64_t out_strides[2];
  DType out_dtype;
};

void linear(const Out& out, const View& x, const View& packed, int64_t out_features,
            const Optional& scales, const Optional& bias, std::string_view activation,
            const Optional& gate, const Optional& residual);

PIXLEAP_DECLARE_KERNELS(linear, LinearParams)

}  // namespace pixleap
