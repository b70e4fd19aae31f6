// Guidance, temperature, top-k, top-p and one categorical draw per row, by Gumbel-max.
//   x = g * cond + (1 - g) * uncond;  token = argmax over kept v of (x_v / T + gumbel_v)
#pragma once

#include "core/dispatch.h"

namespace pixleap {

struct SampleTokensParams {
  DType dtype;
  const void* logits;  // (B, L, V), last stride 1
  const void* uncond;  // (B, L, V), last stride 1; null: no guidance
  int64_t* tokens;     // (B, L)
  int64_t batch, length, vocabulary;
  int64_t logits_strides[2], uncond_strides[2], tokens_strides[2];  // of B and L, in elements
  float guidance_scale;
  bool greedy;  // temperature 0
  float inverse_temperature;
  int64_t top_k;  // 0: off
  double top_p;   // 1: off
  uint64_t seed, offset, first_sample;
};

void sample_tokens(const Out& out, const View& logits, const Optional& uncond,
                   double guidance_scale, double temperature, int64_t top_k, double top_p,
                   int64_t seed, int64_t offset, int64_t first_sample);

PIXLEAP_DECLARE_KERNELS(sample_tokens, SampleTokensParams)

}  // namespace pixleap
