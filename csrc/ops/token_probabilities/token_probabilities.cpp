#include "ops/token_probabilities/token_probabilities.h"

#include "ops/sample_tokens/sample_tokens.h"

namespace pixleap {
namespace {

void check_tokens(const Check& check, const View& tokens, int64_t vocabulary) {
  for (int64_t b = 0; b < tokens.size(0); ++b) {
    const int64_t* row = tokens.as<int64_t>() + b * tokens.stride(0);
    for (int64_t i = 0; i < tokens.size(1); ++i) {
      const int64_t token = row[i * tokens.stride(1)];
      if (token < 0 || token >= vocabulary)
        check.value(
            false, "tokens", "values from 0 to " + std::to_string(vocabulary - 1),
            std::to_string(token) + " at (" + std::to_string(b) + ", " + std::to_string(i) + ")");
    }
  }
}

}  // namespace

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
