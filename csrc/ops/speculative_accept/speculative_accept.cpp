#include "ops/speculative_accept/speculative_accept.h"

namespace pixleap {
namespace {

constexpr KernelTable<SpeculativeAcceptParams> kernels = PIXLEAP_KERNELS_CUDA(speculative_accept);

void check_probabilities(const Check& check, const View& v) {
  check.dtype(v, {DType::f32});
  check.ndim(v, 3);
  check.unit_last_stride(v);
}

void check_out(const Check& check, const View& out, DType dtype, const View& like) {
  check.dtype(out, {dtype});
  check.same_device(out, like);
  check.contiguous(out);
  check.output(out);
}

}  // namespace

void fill_accept_params(const Check& check, AcceptParams& p, const Out& tokens, const Out& accepted,
                        const Out& accepted_length, const View& target, const View& draft,
                        const View& drafted, std::string_view mode, int64_t seed, int64_t offset,
                        int64_t first_sample, const Optional& seeds) {
  check_probabilities(check, target);
  check_probabilities(check, draft);
  check.same_device(draft, target);
  check.dtype(drafted, {DType::i64});
  check.same_device(drafted, target);
  p.mode = mode == "token"   ? AcceptMode::token
           : mode == "joint" ? AcceptMode::joint
                             : AcceptMode::chain;
  const bool chain = mode == "chain";
  check.value(chain || mode == "token" || mode == "joint", "mode", "'token', 'joint' or 'chain'",
              std::string(mode));
  p.batch = draft.size(0), p.length = draft.size(1), p.vocabulary = draft.size(2);
  const bool bonus = chain && target.size(1) == p.length + 1;
  p.rows = bonus ? p.length + 1 : p.length;
  check.shape(target, {p.batch, p.rows, p.vocabulary});
  check.shape(drafted, {p.batch, p.length});
  check.value(p.vocabulary >= 1, "draft", "at least 1 token in the last dimension", p.vocabulary);
  check.shape(tokens, {p.batch, p.rows});
  check_out(check, tokens, DType::i64, target);
  check.shape(accepted, {p.batch, p.length});
  check_out(check, accepted, DType::boolean, target);
  check.shape(accepted_length, {p.batch});
  check_out(check, accepted_length, DType::i64, target);
  const View* const outs[] = {&tokens, &accepted, &accepted_length};
  const View* const ins[] = {&target, &draft, &drafted};
  for (const View* out : outs)
    for (const View* in : ins) check.no_overlap(*out, *in, false);
  check.no_overlap(tokens, accepted, false);
  check.no_overlap(tokens, accepted_length, false);
  check.no_overlap(accepted, accepted_length, false);
  check.value(first_sample >= 0, "first_sample", "a number >= 0", first_sample);

  p.target = target.as<const float>();
  p.draft = draft.as<const float>();
  p.drafted = drafted.as<const int64_t>();
  for (int i = 0; i < 2; ++i) {
    p.target_strides[i] = target.stride(i);
    p.draft_strides[i] = draft.stride(i);
    p.drafted_strides[i] = drafted.stride(i);
  }
  p.tokens = tokens.as<int64_t>();
  p.accepted = accepted.as<bool>();
  p.accepted_length = accepted_length.as<int64_t>();
  p.seed = static_cast<uint64_t>(seed);
  p.offset = static_cast<uint64_t>(offset);
  p.first_sample = static_cast<uint64_t>(first_sample);
  p.seeds = read_seeds(check, seeds, p.batch, target, {&tokens, &accepted, &accepted_length});
}

void report_accept_fault(const Check& check, const AcceptParams& p, int64_t bad) {
  if (bad == kNoFault) return;
  const int64_t b = bad / 4 / p.rows, l = bad / 4 % p.rows;
  const std::string where = " at sample " + std::to_string(b) + ", position " + std::to_string(l);
  const auto fault = static_cast<AcceptFault>(bad % 4);
  if (fault == AcceptFault::drafted)
    check.value(
        false, "tokens", "numbers in [0, " + std::to_string(p.vocabulary) + ")",
        std::to_string(p.drafted[b * p.drafted_strides[0] + l * p.drafted_strides[1]]) + where);
  if (fault == AcceptFault::neighbours)
    check.value(false, "neighbours", "numbers in [0, " + std::to_string(p.vocabulary) + ")",
                "others in the row of the token" + where);
  check.value(false, fault == AcceptFault::target ? "target" : "draft",
              "rows of probabilities, finite and >= 0 with a sum above 0",
              "a row without that" + where);
}

void speculative_accept(const Out& tokens, const Out& accepted, const Out& accepted_length,
                        const View& target, const View& draft, const View& drafted,
                        std::string_view mode, int64_t seed, int64_t offset, int64_t first_sample,
                        const Optional& seeds) {
  const Check check("speculative_accept");
  SpeculativeAcceptParams p{};
  fill_accept_params(check, p, tokens, accepted, accepted_length, target, draft, drafted, mode,
                     seed, offset, first_sample, seeds);
  if (p.batch == 0) return;
  int64_t bad = kNoFault;
  p.bad = &bad;
  std::vector<double> sums;
  if (p.mode == AcceptMode::joint && target.device.type == DeviceType::cpu)
    sums.resize(static_cast<size_t>(2 * p.batch * p.length));
  p.sums = sums.data();
  kernels.run(check, p, target);
  report_accept_fault(check, p, bad);
}

}  // namespace pixleap
