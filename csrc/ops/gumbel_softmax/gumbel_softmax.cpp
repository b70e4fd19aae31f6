#include "ops/gumbel_softmax/gumbel_softmax.h"

#include <cmath>

#include "ops/sample_tokens/sample_tokens.h"

namespace pixleap {

void gumbel_softmax(const Out& out, const View& logits, const Optional& uncond,
                    double guidance_scale, int64_t top_k, double top_p, double logit_scale,
                    double temperature, int64_t seed, int64_t offset, int64_t first_sample,
                    const Optional& seeds) {
  const Check check("gumbel_softmax");
  SampleTokensParams p = filter_params(check, logits, uncond, guidance_scale, top_k, top_p);
  check.value(std::isfinite(logit_scale) && logit_scale >= 0, "logit_scale", "a finite number >= 0",
              logit_scale);
  check.value(std::isfinite(temperature) && temperature > 0, "temperature", "a finite number > 0",
              temperature);
  set_noise(check, p, seed, offset, first_sample, 0, 0);
  p.seeds = read_seeds(check, seeds, p.batch, logits, {&out});
  check_token_output(check, out, DType::f32, logits, uncond, true);
  p.gumbel_softmax = true;
  p.logit_scale = normal_factor(logit_scale);
  p.inverse_softmax_temperature = normal_factor(1.0 / temperature);
  p.all = out.as<float>();
  copy_token_strides(out, p.all_strides);
  run_sample_tokens(check, p, logits);
}

}  // namespace pixleap
