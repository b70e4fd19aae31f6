// One scale of a VAR decoder's state: codebook look-up, bicubic up, phi convolution, accumulate,
// area down.
//   h = up(codebook[tokens]);  f = f_hat + (1 - r) h + r conv3x3(h);  next_input = area_down(f)
#pragma once

#include "core/dispatch.h"

namespace pixleap {

constexpr int kUpsampleMaxTerms = 12;  // 3 taps of the convolution times 4 of the bicubic kernel

// How one output coordinate depends on the n source coordinates through upsampling and one axis
// of the convolution: weight * source[at] under tap `tap`, rows out of the map left out.
struct UpsampleTerm {
  int32_t tap, at;
  float weight;
};
struct UpsampleTerms {
  int32_t count;
  UpsampleTerm term[kUpsampleMaxTerms];
};

struct NextScaleUpdateParams {
  const int64_t* tokens;                             // (B, n * n), in [0, V): checked on the CPU
  const float* codebook;                             // (V, C), last stride 1
  const float* phi_weight;                           // (C, C, 3, 3), contiguous
  const float* phi_bias;                             // (C,)
  const float* f_hat;                                // (B, C, H, H), last stride 1
  float* f_hat_new;                                  // (B, C, H, H), last stride 1; may be f_hat
  float* next_input;                                 // (B, m * m, C), last stride 1
  const UpsampleTerms* terms;                        // (H,), CPU: the same for rows and columns
  int64_t batch, channels, height, side, next_side;  // B, C, H, n, m
  int64_t vocabulary;                                // V
  int64_t tokens_strides[2], codebook_stride, f_strides[3], f_new_strides[3], next_strides[2];
  float phi_ratio;
};

void next_scale_update(const Out& f_hat_new, const Out& next_input, const View& tokens,
                       const View& codebook, const View& phi_weight, const View& phi_bias,
                       const View& f_hat, int64_t next_size, double phi_ratio);

PIXLEAP_DECLARE_KERNELS(next_scale_update, NextScaleUpdateParams)

}  // namespace pixleap
