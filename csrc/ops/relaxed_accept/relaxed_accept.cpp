#include "ops/relaxed_accept/relaxed_accept.h"

#include <cmath>

namespace pixleap {
namespace {

constexpr KernelTable<RelaxedAcceptParams> kernels = PIXLEAP_KERNELS_CUDA(relaxed_accept);

}  // namespace

void relaxed_accept(const Out& out, const Out& accepted, const Out& accepted_length,
                    const View& target, const View& draft, const View& tokens,
                    const Optional& neighbours, std::string_view rule, std::string_view mode,
                    double epsilon, double delta, double tolerance, int64_t seed, int64_t offset,
                    int64_t first_sample) {
  const Check check("relaxed_accept");
  RelaxedAcceptParams p{};
  check.value(rule == "typical" || rule == "neighbourhood" || rule == "tolerance", "rule",
              "'typical', 'neighbourhood' or 'tolerance'", std::string(rule));
  check.value(mode == "token" || mode == "chain", "mode", "'token' or 'chain'", std::string(mode));
  p.rule = rule == "typical"         ? RelaxedRule::typical
           : rule == "neighbourhood" ? RelaxedRule::neighbourhood
                                     : RelaxedRule::tolerance;
  fill_accept_params(check, p, out, accepted, accepted_length, target, draft, tokens, mode, seed,
                     offset, first_sample, Optional{});
  const bool near = p.rule == RelaxedRule::neighbourhood;
  check.value(near == neighbours.defined, "neighbours",
              near ? "a (V, K) array with rule 'neighbourhood'" : "None with this rule",
              near ? "None" : "an array");
  if (near) {
    check.dtype(neighbours, {DType::i64});
    check.same_device(neighbours, target);
    check.shape(neighbours, {p.vocabulary, -1});
    check.unit_last_stride(neighbours);
    const View* const outs[] = {&out, &accepted, &accepted_length};
    for (const View* written : outs) check.no_overlap(*written, neighbours, false);
    p.neighbours = neighbours.as<const int64_t>();
    p.neighbours_stride = neighbours.stride(0), p.neighbour_count = neighbours.size(1);
  }
  check.value(std::isfinite(epsilon) && epsilon >= 0, "epsilon", "a finite number >= 0", epsilon);
  check.value(std::isfinite(delta) && delta >= 0, "delta", "a finite number >= 0", delta);
  check.value(std::isfinite(tolerance) && tolerance >= 0, "tolerance", "a finite number >= 0",
              tolerance);
  p.epsilon = epsilon, p.delta = delta, p.tolerance = tolerance;
  if (p.batch == 0) return;
  int64_t bad = kNoFault;
  p.bad = &bad;
  kernels.run(check, p, target);
  report_accept_fault(check, p, bad);
}

}  // namespace pixleap
