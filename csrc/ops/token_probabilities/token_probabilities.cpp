#include "ops/token_probabilities/token_probabilities.h"

#include "core/tokens.h"
#include "ops/sample_tokens/sample_tokens.h"

namespace pixleap {

void token_probabilities(const Out& out, const View& logits, const Optional& tokens,
                         const Optional& uncond, double guidance_scale, double temperature,
                         int64_t top_k, double top_p, bool log) {
  const Check check("token_probabilities");
  SampleTokensParams p = filter_params(check, logits, uncond, guidance_scale, top_k, top_p);
  set_temperature(check, p, temperature);
  check_token_output(check, out, DType::f32, logits, uncond, !tokens.defined);
  if (tokens.defined) {
    check.dtype(tokens, {DType::i64});
    check.same_device(tokens, logits);
    check.shape(tokens, {logits.size(0), logits.size(1)});
    check.no_overlap(out, tokens, false);
    if (tokens.device.type == DeviceType::cpu) check_tokens(check, tokens, p.vocabulary);
    p.given = tokens.as<const int64_t>();
    copy_token_strides(tokens, p.given_strides);
    p.chosen = out.as<float>();
    p.log_chosen = log;
    copy_token_strides(out, p.chosen_strides);
  } else {
    p.all = out.as<float>();
    p.log_all = log;
    copy_token_strides(out, p.all_strides);
  }
  run_sample_tokens(check, p, logits);
}

}  // namespace pixleap
