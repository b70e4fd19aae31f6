// The distribution that sample_tokens draws from, without a draw: a front of its kernel.
#pragma once

#include "core/view.h"

namespace pixleap {

void token_probabilities(const Out& out, const View& logits, const Optional& tokens,
                         const Optional& uncond, double guidance_scale, double temperature,
                         int64_t top_k, double top_p, bool log);

}  // namespace pixleap
