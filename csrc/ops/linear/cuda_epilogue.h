// The epilogue of the CUDA kernels of linear.
#pragma once

#include "cuda/launch.h"
#include "ops/linear/linear.h"

namespace pixleap {

__device__ inline float linear_activation(Activation a, float x) {
  const auto sigmoid = [](float v) { return 1.f / (1.f + expf(-v)); };
  switch (a) {
    case Activation::gelu:
      return 0.5f * x * (1.f + erff(x * 0.70710678f));
    case Activation::gelu_tanh:  // 0.5 (1 + tanh(u)) = sigmoid(2 u)
      return x * sigmoid(1.59576912f * fmaf(x * x * x, 0.044715f, x));
    case Activation::silu:
      return x * sigmoid(x);
    default:
      return x;
  }
}

// row: of batch * length; sum: of x times the packed weights.
__device__ inline void store_linear(const LinearParams& p, int64_t row, int64_t n, float sum) {
  const int64_t b = row / p.length, l = row - b * p.length;
  if (p.scales) sum *= p.scales[n];
  if (p.bias) sum += element_at(p.bias, p.bias_dtype, n);
  float y = linear_activation(p.activation, sum);
  if (p.gate) y *= element_at(p.gate, p.gate_dtype, b * p.gate_stride + n);
  if (p.residual)
    y += element_at(p.residual, p.out_dtype,
                    b * p.residual_strides[0] + l * p.residual_strides[1] + n);
  const int64_t i = b * p.out_strides[0] + l * p.out_strides[1] + n;
  switch (p.out_dtype) {
    case DType::bf16:
      return from_accumulate(y, static_cast<__nv_bfloat16*>(p.out)[i]);
    case DType::f16:
      return from_accumulate(y, static_cast<__half*>(p.out)[i]);
    default:
      static_cast<float*>(p.out)[i] = y;
  }
}

}  // namespace pixleap
