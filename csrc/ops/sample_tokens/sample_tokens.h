// Guidance, temperature, top-k, top-p and one categorical draw per row, by Gumbel-max.
//   x = g * cond + (1 - g) * uncond;  token = argmax over kept v of (x_v / T + gumbel_v)
// token_probabilities and gumbel_softmax are other fronts of the same kernel.
#pragma once

#include <span>
#include <string_view>

#include "core/dispatch.h"
#include "core/philox.h"
#include "core/seeds.h"

namespace pixleap {

struct SampleTokensParams {
  DType dtype;
  const void* logits;    // (B, L, V), last stride 1
  const void* uncond;    // (B, L, V), last stride 1; null: no guidance
  int64_t* tokens;       // (B, L) drawn; null: nothing is drawn
  const int64_t* given;  // (B, L) to score in place of drawn ones; may be null
  float* chosen;         // (B, L): (log-)probability of the drawn or given token; may be null
  float* all;            // (B, L, V), last stride 1: that of all tokens, or the Gumbel-softmax
                         // weights; may be null
  int64_t batch, length, vocabulary;
  // Of B and L, in elements.
  int64_t logits_strides[2], uncond_strides[2], tokens_strides[2], given_strides[2],
      chosen_strides[2], all_strides[2];
  float guidance_scale;
  bool greedy;  // temperature 0
  bool log_chosen, log_all;
  bool double_noise;
  bool gumbel_softmax;  // all = softmax((logit_scale * x + gumbel) * inverse_softmax_temperature)
  float inverse_temperature, logit_scale, inverse_softmax_temperature;
  int64_t top_k;  // 0: off
  double top_p;   // 1: off
  uint64_t seed, offset, first_sample;
  Seeds seeds;
  uint64_t positions, first_position;  // of a whole sample, and where the rows begin in it
};

// Element e of the float64 noise has the word of element e of the stream (seed, offset) on top and
// below it lane e % 4 of the group that follows, with the highest bit of the counter set: no
// element of a stream gets there.
constexpr uint64_t kLowWordGroups = uint64_t{1} << 63;

void sample_tokens(const Out& out, std::span<const Out> log_prob,
                   std::span<const Out> probabilities, const View& logits, const Optional& uncond,
                   double guidance_scale, double temperature, int64_t top_k, double top_p,
                   int64_t seed, int64_t offset, int64_t first_sample, int64_t first_position,
                   int64_t length, std::string_view noise_dtype, const Optional& seeds);

PIXLEAP_DECLARE_KERNELS(sample_tokens, SampleTokensParams)

// What the three fronts share.
SampleTokensParams filter_params(const Check& check, const View& logits, const Optional& uncond,
                                 double guidance_scale, int64_t top_k, double top_p);
void set_temperature(const Check& check, SampleTokensParams& p, double temperature);
void set_noise(const Check& check, SampleTokensParams& p, int64_t seed, int64_t offset,
               int64_t first_sample, int64_t first_position, int64_t length);
void check_token_output(const Check& check, const View& out, DType dtype, const View& logits,
                        const Optional& uncond, bool of_all_tokens);
void run_sample_tokens(const Check& check, const SampleTokensParams& p, const View& logits);

// A factor kept normal, so that 0 times it is 0 and -inf times it is -inf.
float normal_factor(double x);

// Index of row l of sample b in the random stream, and the seed of that stream.
PIXLEAP_HD static inline uint64_t stream_row(const SampleTokensParams& p, int64_t b, int64_t l) {
  const uint64_t sample = sample_of(p.seeds, p.first_sample, b);
  return sample * p.positions + p.first_position + static_cast<uint64_t>(l);
}
PIXLEAP_HD static inline uint64_t stream_seed(const SampleTokensParams& p, int64_t b) {
  return seed_of(p.seeds, p.seed, b);
}

void copy_token_strides(const View& v, int64_t* strides);

}  // namespace pixleap
