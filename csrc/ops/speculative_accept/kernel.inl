#include <cmath>

#include "ops/speculative_accept/row.h"

namespace pixleap {
namespace {

// log of (p / P) / (q / Q) for token v; -inf where p or q is 0.
PIXLEAP_INLINE double log_ratio(const Position& at, int64_t v) {
  const double p = at.p[v], q = at.q[v];
  if (!(p > 0 && q > 0)) return p > 0 ? __builtin_inf() : -__builtin_inf();
  return __builtin_log((p * at.q_sum) / (q * at.p_sum));
}

// The largest p / q over the row: infinite where q = 0 < p.
static double largest_ratio(const float* p, const float* q, int64_t n) {
  vd most{};
  for_each_16(p, q, n, [&](const float* a, const float* b) {
    for (int k = 0; k < kParts; ++k) {
      const vd x = load_double(a + k * kHalf), r = x / load_double(b + k * kHalf);
      most = (x > 0) & (r > most) ? r : most;
    }
  });
  double best = 0;
  for (int i = 0; i < kHalf; ++i) best = most[i] > best ? most[i] : best;
  return best;
}

PIXLEAP_INLINE Position joint_position(const AcceptParams& p, int64_t b, int64_t l) {
  const double* sums = p.sums + 2 * (b * p.length + l);
  return {target_row(p, b, l), p.draft + b * p.draft_strides[0] + l * p.draft_strides[1], sums[0],
          sums[1], p.drafted[b * p.drafted_strides[0] + l * p.drafted_strides[1]]};
}

// The residual (P - Q)+ of the product distributions: y ~ P stays with (1 - Q(y) / P(y))+, divided
// by its largest value once it is worth looking for.
static void draw_joint_residual(const AcceptParams& p, int64_t b, const Philox4& key) {
  int64_t* tokens = p.tokens + b * p.length;
  double bound = 1;
  for (uint64_t t = 0;; ++t) {
    bool equal = false;
    if (t == kPlainTries) {
      double most = 0;
      for (int64_t l = 0; l < p.length; ++l) {
        const Position at = joint_position(p, b, l);
        most += __builtin_log(largest_ratio(at.p, at.q, p.vocabulary) * at.q_sum / at.p_sum);
      }
      equal = most < kEqualLogRatio;
      bound = -std::expm1(-most);
    }
    double sum = 0;
    for (int64_t l = 0; l < p.length; ++l) {
      const Position at = joint_position(p, b, l);
      const double u = first_uniform(joint_words(p, key, b, t, l));
      tokens[l] = draw_token(at.p, nullptr, at.p_sum, 0, p.vocabulary, u);
      sum += log_ratio(at, tokens[l]);
    }
    const double u = first_uniform(joint_words(p, key, b, t, p.length));
    if (equal || u * bound < -std::expm1(-sum)) return;
  }
}

static void accept_joint(const AcceptParams& p, int64_t b) {
  double sum = 0;
  bool possible = true;
  for (int64_t l = 0; l < p.length; ++l) {
    const Position at = joint_position(p, b, l);
    p.tokens[b * p.length + l] = at.token;
    possible = possible && at.p[at.token] > 0 && at.q[at.token] > 0;
    if (possible) sum += log_ratio(at, at.token);
  }
  const Philox4 words = accept_words(p, b, p.length);
  const bool accepted = possible && __builtin_log(first_uniform(words)) < sum;
  for (int64_t l = 0; l < p.length; ++l) p.accepted[b * p.length + l] = accepted;
  p.accepted_length[b] = accepted ? p.length : 0;
  if (!accepted && p.length > 0) draw_joint_residual(p, b, words);
}

}  // namespace

void PIXLEAP_KERNEL(speculative_accept)(const SpeculativeAcceptParams& p) {
  if (p.mode != AcceptMode::joint)
    return verify_tokens(
        p, [](int64_t, int64_t, const Position& at, double u) { return exact_decision(at, u); });
  if (p.length > 0)
    parallel_for(p.batch * p.length, row_grain(p), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        Position at;
        if (!read_position(p, i / p.length, i % p.length, at)) continue;
        p.sums[2 * i] = at.p_sum, p.sums[2 * i + 1] = at.q_sum;
      }
    });
  if (*p.bad != kNoFault) return;
  parallel_for(p.batch, sample_grain(p), [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) accept_joint(p, b);
  });
}

}  // namespace pixleap
