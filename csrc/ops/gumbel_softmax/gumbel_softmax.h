// Gumbel-softmax weights of filtered logits, with the noise of sample_tokens: a front of its
// kernel.
#pragma once

#include "core/view.h"

namespace pixleap {

void gumbel_softmax(const Out& out, const View& logits, const Optional& uncond,
                    double guidance_scale, int64_t top_k, double top_p, double logit_scale,
                    double temperature, int64_t seed, int64_t offset, int64_t first_sample,
                    const Optional& seeds);

}  // namespace pixleap
