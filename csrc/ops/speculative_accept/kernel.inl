#include <cmath>

#include "core/parallel.h"
#include "ops/speculative_accept/row.h"

namespace pixleap {
namespace {

// log of (p / P) / (q / Q) for token v; -inf where p or q is 0.
PIXLEAP_INLINE double log_ratio(const Position& at, int64_t v) {
  const double p = at.p[v], q = at.q[v];
  if (!(p > 0 && q > 0)) return p > 0 ? __builtin_inf() : -__builtin_inf();
  return __builtin_log((p * at.q_sum) / (q * at.p_sum));
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
  const auto decide = [](int64_t, int64_t, const Position& at, double u) {
    return exact_decision(at, u);
  };
  const int64_t grain = (1 << 14) / p.vocabulary + 1;
  if (p.mode == AcceptMode::chain) {
    parallel_for(p.batch, grain / (p.length + 1) + 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) accept_tokens(p, decide, b, 0, p.length);
    });
  } else if (p.length > 0) {
    parallel_for(p.batch * p.length, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t b = i / p.length, l = i % p.length;
        if (p.mode == AcceptMode::token) {
          accept_tokens(p, decide, b, l, l + 1);
        } else {
          Position at;
          if (!read_position(p, b, l, at)) continue;
          p.sums[2 * i] = at.p_sum, p.sums[2 * i + 1] = at.q_sum;
        }
      }
    });
  }
  if (*p.bad != kNoFault) return;
  if (p.mode == AcceptMode::joint)
    parallel_for(p.batch, grain / (p.length + 1) + 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) accept_joint(p, b);
    });
  else
    for (int64_t b = 0; b < p.batch; ++b)
      p.accepted_length[b] = leading(p.accepted + b * p.length, p.length);
}

}  // namespace pixleap
