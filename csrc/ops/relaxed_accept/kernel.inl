#include <cmath>

#include "ops/relaxed_accept/relaxed_accept.h"
#include "ops/speculative_accept/row.h"

namespace pixleap {
namespace {

typedef int64_t vl __attribute__((vector_size(kHalf * 8)));

// log(x) of normal positive x to about 1e-15 of max(1, |log x|), by the series of
// 2 atanh((m - 1) / (m + 1)) with x = 2^e m, m in [sqrt(1/2), sqrt(2)). No fma: one result for
// every ISA.
PIXLEAP_INLINE vd log_positive(vd x) {
  vl bits = bit_cast_to<vl>(x);
  const vl e = (bits - 0x3fe6a09e667f3bcd) >> 52;
  bits -= e << 52;
  const vd m = bit_cast_to<vd>(bits), s = (m - 1.0) / (m + 1.0), t = s * s;
  vd sum = vd{} + 1.0 / 19;
  for (int k = 17; k > 0; k -= 2) sum = sum * t + 1.0 / k;
  // An integer below 2^51 to double, which AVX2 has no instruction for.
  const vd exponent = bit_cast_to<vd>(e + 0x4338000000000000) - 0x1.8p52;
  return exponent * 0x1.62e42fefa39efp-1 + 2.0 * s * sum;
}

// The entropy of a row in nats.
static double entropy(const float* p, double p_sum, int64_t n) {
  Sum16 sum{};
  for_each_16(p, p, n, [&](const float* a, const float*) {
    for (int k = 0; k < kParts; ++k) {
      const vd x = load_double(a + k * kHalf);
      sum.part[k] += x * log_positive(x > 0 ? x : vd{} + 1.0);
    }
  });
  return __builtin_log(p_sum) - total(sum) / p_sum;
}

// p > min(epsilon, delta exp(-H(p))). The entropy lies between 0 and log V, which decides many
// positions without it.
static bool typical(const RelaxedAcceptParams& p, const Position& at) {
  const double x = at.p[at.token] / at.p_sum;
  if (x > p.epsilon || x > p.delta) return true;
  const double least = p.delta / static_cast<double>(p.vocabulary);
  if (x <= (p.epsilon < least ? p.epsilon : least)) return false;
  return x > p.delta * std::exp(-entropy(at.p, at.p_sum, p.vocabulary));
}

// The probability of the nearest tokens, as many as sum to at most delta, counts for the token.
static bool neighbourhood(const RelaxedAcceptParams& p, int64_t b, int64_t l, const Position& at,
                          double u) {
  const int64_t* near = p.neighbours + at.token * p.neighbours_stride;
  double sum = 0;
  for (int64_t i = 0; i < p.neighbour_count; ++i) {
    if (near[i] < 0 || near[i] >= p.vocabulary) {
      note_fault(p, accept_fault(p, b, l, AcceptFault::neighbours));
      return false;
    }
    if (near[i] == at.token) continue;
    const double next = sum + at.p[near[i]];
    if (next > p.delta * at.p_sum) break;
    sum = next;
  }
  const double q = at.q[at.token];
  return q > 0 && u * (q * at.p_sum) < (at.p[at.token] + sum) * at.q_sum;
}

static bool within_tolerance(const RelaxedAcceptParams& p, const Position& at, double u) {
  const double q = at.q[at.token] * at.p_sum;
  return q > 0 && (u - p.tolerance) * q < at.p[at.token] * at.q_sum;
}

}  // namespace

void PIXLEAP_KERNEL(relaxed_accept)(const RelaxedAcceptParams& p) {
  verify_tokens(p, [&](int64_t b, int64_t l, const Position& at, double u) {
    switch (p.rule) {
      case RelaxedRule::typical:
        return typical(p, at);
      case RelaxedRule::neighbourhood:
        return neighbourhood(p, b, l, at, u);
      default:
        return within_tolerance(p, at, u);
    }
  });
}

}  // namespace pixleap
