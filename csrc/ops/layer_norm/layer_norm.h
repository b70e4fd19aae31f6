// Layer norm over the last axis, with an elementwise affine map and adaLN modulation in the pass:
//   out = (LN(x) * weight + bias) * (1 + scale[b]) + shift[b]
#pragma once

#include "core/dispatch.h"

namespace pixleap {

// A vector of `channels` numbers per batch entry (stride) or one for all (stride 0); null: absent.
struct LayerNormOperand {
  const void* data;
  DType dtype;
  int64_t stride;
};

struct LayerNormParams {
  int64_t batch, length, channels;
  const void* x;         // (batch, length, channels), last stride 1
  int64_t x_strides[2];  // of batch and length, in elements
  DType x_dtype;
  void* out;  // as x; may be x
  int64_t out_strides[2];
  DType out_dtype;
  LayerNormOperand weight, bias, scale, shift;
  float eps;
};

void layer_norm(const Out& out, const View& x, const Optional& weight, const Optional& bias,
                const Optional& scale, const Optional& shift, double eps);

PIXLEAP_DECLARE_KERNELS(layer_norm, LayerNormParams)

}  // namespace pixleap
