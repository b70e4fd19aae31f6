#include "ops/sample_tokens/sample_tokens.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace pixleap {
namespace {

constexpr KernelTable<SampleTokensParams> kernels = PIXLEAP_KERNELS(sample_tokens);
constexpr int64_t kMaxVocabulary = int64_t{1} << 28;

void copy_strides(const View& v, int64_t* strides) {
  strides[0] = v.stride(0);
  strides[1] = v.stride(1);
}

}  // namespace

void sample_tokens(const Out& out, const View& logits, const Optional& uncond,
                   double guidance_scale, double temperature, int64_t top_k, double top_p,
                   int64_t seed, int64_t offset, int64_t first_sample) {
  const Check check("sample_tokens");
  check.dtype(logits, {DType::f32, DType::bf16, DType::f16});
  check.ndim(logits, 3);
  check.unit_last_stride(logits);
  const int64_t vocabulary = logits.size(2);
  check.value(vocabulary >= 1 && vocabulary <= kMaxVocabulary, "logits", "1 to 2^28 tokens",
              vocabulary);
  if (uncond.defined) {
    check.same_dtype(uncond, logits);
    check.same_device(uncond, logits);
    check.same_shape(uncond, logits);
    check.unit_last_stride(uncond);
  }
  check.dtype(out, {DType::i64});
  check.same_device(out, logits);
  check.shape(out, {logits.size(0), logits.size(1)});
  check.output(out);
  check.no_overlap(out, logits, false);
  check.no_overlap(out, uncond, false);
  check.value(std::isfinite(guidance_scale), "guidance_scale", "a finite number", guidance_scale);
  check.value(std::isfinite(temperature) && temperature >= 0, "temperature", "a finite number >= 0",
              temperature);
  check.value(top_k >= 0 && top_k <= vocabulary, "top_k", "0 to " + std::to_string(vocabulary),
              top_k);
  check.value(top_p > 0 && top_p <= 1, "top_p", "a number in (0, 1]", top_p);
  check.value(first_sample >= 0, "first_sample", "a number >= 0", first_sample);

  SampleTokensParams p{};
  p.dtype = logits.dtype;
  p.logits = logits.data;
  p.uncond = uncond.defined ? uncond.data : nullptr;
  p.tokens = out.as<int64_t>();
  p.batch = logits.size(0);
  p.length = logits.size(1);
  p.vocabulary = vocabulary;
  copy_strides(logits, p.logits_strides);
  if (uncond.defined) copy_strides(uncond, p.uncond_strides);
  copy_strides(out, p.tokens_strides);
  p.guidance_scale = static_cast<float>(guidance_scale);
  p.greedy = temperature == 0;
  // Kept normal, so that 0 times it is 0 and -inf times it is -inf.
  if (!p.greedy)
    p.inverse_temperature = static_cast<float>(
        std::clamp(1.0 / temperature, static_cast<double>(FLT_MIN), static_cast<double>(FLT_MAX)));
  p.top_k = top_k == vocabulary ? 0 : top_k;
  p.top_p = top_p;
  p.seed = static_cast<uint64_t>(seed);
  p.offset = static_cast<uint64_t>(offset);
  p.first_sample = static_cast<uint64_t>(first_sample);
  if (logits.numel() > 0) kernels.run(check, p, logits);
}

}  // namespace pixleap
