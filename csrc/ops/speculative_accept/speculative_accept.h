// Verification of drafted tokens: accept or replace each so that the result follows the target.
//   token:  positions on their own;  joint: all of a sample or none;  chain: up to the first
//   rejection.
// The kernels of relaxed_accept are built from the same pieces.
#pragma once

#include <string_view>
#include <vector>

#include "core/dispatch.h"
#include "core/philox.h"
#include "core/seeds.h"

namespace pixleap {

enum class AcceptMode : int32_t { token, joint, chain };

struct AcceptParams {
  AcceptMode mode;
  int64_t batch, length, rows, vocabulary;  // B, L, R, V; R = L, or L + 1 in mode chain
  const float* target;                      // (B, R, V), stride 1 along V
  const float* draft;                       // (B, L, V), stride 1 along V
  const int64_t* drafted;                   // (B, L)
  int64_t target_strides[2], draft_strides[2], drafted_strides[2];
  int64_t* tokens;           // (B, R)
  bool* accepted;            // (B, L)
  int64_t* accepted_length;  // (B,)
  double* sums;              // CPU, mode joint: scratch (B, L, 2)
  uint64_t seed, offset, first_sample;
  Seeds seeds;
  int64_t* bad;  // CPU: the least accept_fault, else stays
};

struct SpeculativeAcceptParams : AcceptParams {};

void speculative_accept(const Out& tokens, const Out& accepted, const Out& accepted_length,
                        const View& target, const View& draft, const View& drafted,
                        std::string_view mode, int64_t seed, int64_t offset, int64_t first_sample,
                        const Optional& seeds);

PIXLEAP_DECLARE_KERNELS(speculative_accept, SpeculativeAcceptParams)

// Checks what both ops take and fills everything but `sums` and `bad`.
void fill_accept_params(const Check& check, AcceptParams& p, const Out& tokens, const Out& accepted,
                        const Out& accepted_length, const View& target, const View& draft,
                        const View& drafted, std::string_view mode, int64_t seed, int64_t offset,
                        int64_t first_sample, const Optional& seeds);

// What is wrong with position l of sample b; the least one is reported.
enum class AcceptFault : int64_t { target, draft, drafted, neighbours };
constexpr int64_t kNoFault = INT64_MAX;
PIXLEAP_HD static inline int64_t accept_fault(const AcceptParams& p, int64_t b, int64_t l,
                                              AcceptFault fault) {
  return (b * p.rows + l) * 4 + static_cast<int64_t>(fault);
}
void report_accept_fault(const Check& check, const AcceptParams& p, int64_t bad);

// The four words of position l of sample b: two for the decision, two for the draw. Slot L has
// those of the bonus token of mode chain, and of mode joint's decision and the key of its tries.
PIXLEAP_HD static inline Philox4 accept_words(const AcceptParams& p, int64_t b, int64_t l) {
  const uint64_t sample = sample_of(p.seeds, p.first_sample, b);
  const uint64_t slots = static_cast<uint64_t>(p.length) + 1;
  return philox4x32_10(seed_of(p.seeds, p.seed, b), sample * slots + static_cast<uint64_t>(l),
                       p.offset);
}
PIXLEAP_HD static inline double first_uniform(const Philox4& w) {
  return uniform_open_double(w.v[0], w.v[1]);
}
PIXLEAP_HD static inline double second_uniform(const Philox4& w) {
  return uniform_open_double(w.v[2], w.v[3]);
}

// Slot l of try t of a sample in mode joint: a stream of its own, so that tries have no end.
PIXLEAP_HD static inline Philox4 joint_words(const AcceptParams& p, const Philox4& key, int64_t b,
                                             uint64_t t, int64_t l) {
  const uint64_t seed = (static_cast<uint64_t>(key.v[2]) << 32) | key.v[3];
  const uint64_t slots = static_cast<uint64_t>(p.length) + 1;
  return philox4x32_10(seed, t * slots + static_cast<uint64_t>(l),
                       sample_of(p.seeds, p.first_sample, b));
}

// Tries of mode joint before the largest ratio is looked for, and where P and Q count as equal.
constexpr uint64_t kPlainTries = 4;
constexpr double kEqualLogRatio = 1e-12;

}  // namespace pixleap
