// Verification of drafted tokens by approximate rules; all but the decision as in
// speculative_accept.
#pragma once

#include "ops/speculative_accept/speculative_accept.h"

namespace pixleap {

enum class RelaxedRule : int32_t { typical, neighbourhood, tolerance };

struct RelaxedAcceptParams : AcceptParams {
  RelaxedRule rule;
  const int64_t* neighbours;  // (V, K), stride 1 along K; null: not that rule
  int64_t neighbours_stride, neighbour_count;
  double epsilon, delta, tolerance;
};

void relaxed_accept(const Out& out, const Out& accepted, const Out& accepted_length,
                    const View& target, const View& draft, const View& tokens,
                    const Optional& neighbours, std::string_view rule, std::string_view mode,
                    double epsilon, double delta, double tolerance, int64_t seed, int64_t offset,
                    int64_t first_sample);

PIXLEAP_DECLARE_KERNELS(relaxed_accept, RelaxedAcceptParams)

}  // namespace pixleap
