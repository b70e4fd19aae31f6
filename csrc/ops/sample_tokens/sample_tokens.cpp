#include "ops/sample_tokens/sample_tokens.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace pixleap {
namespace {

constexpr KernelTable<SampleTokensParams> kernels = PIXLEAP_KERNELS_CUDA(sample_tokens);
constexpr int64_t kMaxVocabulary = int64_t{1} << 28;

}  // namespace

SampleTokensParams filter_params(const Check& check, const View& logits, const Optional& uncond,
                                 double guidance_scale, int64_t top_k, double top_p) {
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
  check.value(std::isfinite(guidance_scale), "guidance_scale", "a finite number", guidance_scale);
  check.value(top_k >= 0 && top_k <= vocabulary, "top_k", "0 to " + std::to_string(vocabulary),
              top_k);
  check.value(top_p > 0 && top_p <= 1, "top_p", "a number in (0, 1]", top_p);

  SampleTokensParams p{};
  p.dtype = logits.dtype;
  p.logits = logits.data;
  p.uncond = uncond.defined ? uncond.data : nullptr;
  p.batch = logits.size(0);
  p.length = logits.size(1);
  p.vocabulary = vocabulary;
  copy_token_strides(logits, p.logits_strides);
  if (uncond.defined) copy_token_strides(uncond, p.uncond_strides);
  p.guidance_scale = static_cast<float>(guidance_scale);
  p.inverse_temperature = 1;
  p.top_k = top_k == vocabulary ? 0 : top_k;
  p.top_p = top_p;
  return p;
}

void copy_token_strides(const View& v, int64_t* strides) {
  strides[0] = v.stride(0);
  strides[1] = v.stride(1);
}

float normal_factor(double x) {
  return static_cast<float>(
      std::clamp(x, static_cast<double>(FLT_MIN), static_cast<double>(FLT_MAX)));
}

void set_temperature(const Check& check, SampleTokensParams& p, double temperature) {
  check.value(std::isfinite(temperature) && temperature >= 0, "temperature", "a finite number >= 0",
              temperature);
  p.greedy = temperature == 0;
  if (!p.greedy) p.inverse_temperature = normal_factor(1.0 / temperature);
}

void set_noise(const Check& check, SampleTokensParams& p, int64_t seed, int64_t offset,
               int64_t first_sample, int64_t first_position, int64_t length) {
  check.value(first_sample >= 0, "first_sample", "a number >= 0", first_sample);
  p.seed = static_cast<uint64_t>(seed);
  p.offset = static_cast<uint64_t>(offset);
  check.value(first_position >= 0, "first_position", "a number >= 0", first_position);
  check.value(length == 0 || length - p.length >= first_position, "length",
              "0, or room for " + std::to_string(p.length) + " positions from first_position on",
              length);
  p.first_sample = static_cast<uint64_t>(first_sample);
  p.first_position = static_cast<uint64_t>(first_position);
  p.positions = static_cast<uint64_t>(length == 0 ? p.length : length);
}

void check_token_output(const Check& check, const View& out, DType dtype, const View& logits,
                        const Optional& uncond, bool of_all_tokens) {
  check.dtype(out, {dtype});
  check.same_device(out, logits);
  if (of_all_tokens) {
    check.same_shape(out, logits);
    check.unit_last_stride(out);
  } else {
    check.shape(out, {logits.size(0), logits.size(1)});
  }
  check.output(out);
  check.no_overlap(out, logits, false);
  check.no_overlap(out, uncond, false);
}

void run_sample_tokens(const Check& check, const SampleTokensParams& p, const View& logits) {
  if (logits.numel() > 0) kernels.run(check, p, logits);
}

void sample_tokens(const Out& out, std::span<const Out> log_prob,
                   std::span<const Out> probabilities, const View& logits, const Optional& uncond,
                   double guidance_scale, double temperature, int64_t top_k, double top_p,
                   int64_t seed, int64_t offset, int64_t first_sample, int64_t first_position,
                   int64_t length, std::string_view noise_dtype, const Optional& seeds) {
  const Check check("sample_tokens");
  SampleTokensParams p = filter_params(check, logits, uncond, guidance_scale, top_k, top_p);
  set_temperature(check, p, temperature);
  set_noise(check, p, seed, offset, first_sample, first_position, length);
  check.value(noise_dtype == "float32" || noise_dtype == "float64", "noise_dtype",
              "'float32' or 'float64'", std::string(noise_dtype));
  p.double_noise = noise_dtype == "float64";
  p.seeds = read_seeds(check, seeds, p.batch, logits, {&out});
  for (const Out& v : log_prob) check.no_overlap(v, seeds, false);
  for (const Out& v : probabilities) check.no_overlap(v, seeds, false);
  check_token_output(check, out, DType::i64, logits, uncond, false);
  p.tokens = out.as<int64_t>();
  copy_token_strides(out, p.tokens_strides);
  check.value(log_prob.size() <= 1, "log_prob", "at most one array",
              static_cast<int64_t>(log_prob.size()));
  check.value(probabilities.size() <= 1, "probabilities", "at most one array",
              static_cast<int64_t>(probabilities.size()));
  for (const Out& v : log_prob) {
    check_token_output(check, v, DType::f32, logits, uncond, false);
    check.no_overlap(v, out, false);
    p.chosen = v.as<float>();
    p.log_chosen = true;
    copy_token_strides(v, p.chosen_strides);
  }
  for (const Out& v : probabilities) {
    check_token_output(check, v, DType::f32, logits, uncond, true);
    check.no_overlap(v, out, false);
    for (const Out& other : log_prob) check.no_overlap(v, other, false);
    p.all = v.as<float>();
    copy_token_strides(v, p.all_strides);
  }
  run_sample_tokens(check, p, logits);
}

}  // namespace pixleap
