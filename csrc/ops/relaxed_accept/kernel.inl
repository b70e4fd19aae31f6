#include <cmath>

#include "ops/relaxed_accept/relaxed_accept.h"
#include "ops/speculative_accept/row.h"

namespace pixleap {
namespace {

// p > min(epsilon, delta exp(-H(p))). The entropy lies between 0 and log V, which decides most
// positions without it.
static bool typical(const RelaxedAcceptParams& p, const Position& at) {
  const double x = at.p[at.token] / at.p_sum;
  if (x > p.epsilon || x > p.delta) return true;
  const double least = p.delta / static_cast<double>(p.vocabulary);
  if (x <= (p.epsilon < least ? p.epsilon : least)) return false;
  double sum = 0;
  for (int64_t v = 0; v < p.vocabulary; ++v)
    if (at.p[v] > 0) {
      const double y = at.p[v] / at.p_sum;
      sum += y * __builtin_log(y);
    }
  return x > p.delta * std::exp(sum);
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
