#include "ops/relaxed_accept/relaxed_accept.h"
#include "ops/speculative_accept/row.cuh"

namespace pixleap {
namespace {

struct RelaxedDecision {
  __device__ int operator()(const RelaxedAcceptParams& p, const DevicePosition& at, double u,
                            RowShared& shared) const {
    const double q = at.q[at.token] * at.p_sum;
    if (p.rule == RelaxedRule::tolerance)
      return q > 0 && (u - p.tolerance) * q < at.p[at.token] * at.q_sum;
    if (p.rule == RelaxedRule::typical) {
      double part = 0;
      for (int64_t v = threadIdx.x; v < p.vocabulary; v += kRowThreads) {
        const double x = at.p[v] / at.p_sum;
        if (x > 0) part += x * log(x);
      }
      return at.p[at.token] / at.p_sum > fmin(p.epsilon, p.delta * exp(block_total(part, shared)));
    }
    const int64_t* near = p.neighbours + at.token * p.neighbours_stride;
    double sum = 0;
    for (int64_t i = 0; i < p.neighbour_count; ++i) {
      if (near[i] < 0 || near[i] >= p.vocabulary) return -1;
      if (near[i] == at.token) continue;
      const double next = sum + at.p[near[i]];
      if (next > p.delta * at.p_sum) break;
      sum = next;
    }
    return q > 0 && u * q < (at.p[at.token] + sum) * at.q_sum;
  }
};

}  // namespace

void relaxed_accept_cuda(const RelaxedAcceptParams& p, const Device& device) {
  launch_verify(p, RelaxedDecision{}, device);
}

}  // namespace pixleap
