// One Gauss-Seidel-Jacobi step of an affine flow:
//   x = z * exp(a') + b',  a' = a + guidance * (a - uncond_a),  b' likewise,
//   change = max over C of |x - previous|, infinite where a value is not finite.
#pragma once

#include "core/dispatch.h"

namespace pixleap {

struct JacobiOperand {
  void* data;  // (B, W, C), stride 1 along C
  int64_t batch_stride, token_stride;
};

struct JacobiUpdateParams {
  DType dtype;
  int64_t batch, tokens, channels;                         // B, W, C
  JacobiOperand x, z, a, b, previous, uncond_a, uncond_b;  // uncond_*: data may be null
  const float* guidance;                                   // (W,), may be null
  int64_t guidance_stride;
  float* change;  // (B, W)
  int64_t change_batch_stride, change_token_stride;
};

void jacobi_update(const Out& x, const Out& change, const View& z, const View& a, const View& b,
                   const View& previous, const Optional& uncond_a, const Optional& uncond_b,
                   const Optional& guidance);

PIXLEAP_DECLARE_KERNELS(jacobi_update, JacobiUpdateParams)

}  // namespace pixleap
