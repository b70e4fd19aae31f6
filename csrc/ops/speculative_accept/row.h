// One row of probabilities on the CPU: its sum, a draw from it or from the residual, in float64.
// Sums run over 16 lanes whatever the vector width is, so that every ISA gives the same bits.
#pragma once

#include "ops/speculative_accept/speculative_accept.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int kLanes = 16, kHalf = VW / 2, kParts = kLanes / kHalf;
typedef double vd __attribute__((vector_size(kHalf * 8)));
typedef float vq __attribute__((vector_size(kHalf * 4)));
constexpr int64_t kMaxBlocks = 256;

PIXLEAP_INLINE vd load_double(const float* p) {
  vq v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vd);
}

struct Sum16 {
  vd part[kParts];
};

PIXLEAP_INLINE double total(const Sum16& s) {
  double a[kLanes];
  std::memcpy(a, s.part, sizeof a);
  for (int step = kLanes / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) a[i] += a[i + step];
  return a[0];
}

// Calls body with pointers to 16 entries of x and y, zeros after the last.
template <class Body>
PIXLEAP_INLINE void for_each_16(const float* x, const float* y, int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(x + i, y + i);
  if (i == n) return;
  float a[kLanes] = {}, b[kLanes] = {};
  std::memcpy(a, x + i, static_cast<size_t>(n - i) * sizeof(float));
  std::memcpy(b, y + i, static_cast<size_t>(n - i) * sizeof(float));
  body(static_cast<const float*>(a), static_cast<const float*>(b));
}

// The sum of a row; false if it is no distribution: a negative, NaN or infinite entry, or all
// zeros.
static bool row_sum(const float* x, int64_t n, double& sum) {
  Sum16 s{};
  vf low{};
  for_each_16(x, x, n, [&](const float* a, const float*) {
    for (int k = 0; k < kParts; ++k) s.part[k] += load_double(a + k * kHalf);
    for (int k = 0; k < kLanes; k += VW) low = vmin(low, load(a + k));
  });
  sum = total(s);
  return reduce_max(-low) <= 0 && sum > 0 && sum < __builtin_inf();
}

// The weight of an entry: p, or with a draft (p / P - q / Q)+ times P Q.
template <bool Residual>
PIXLEAP_INLINE double weight(float p, float q, double p_sum, double q_sum) {
  if constexpr (!Residual) return static_cast<double>(p);
  const double d = static_cast<double>(p) * q_sum - static_cast<double>(q) * p_sum;
  return d > 0 ? d : 0;
}

template <bool Residual>
PIXLEAP_INLINE double block_sum(const float* p, const float* q, double p_sum, double q_sum,
                                int64_t n) {
  Sum16 s{};
  for_each_16(p, q, n, [&](const float* a, const float* b) {
    for (int k = 0; k < kParts; ++k) {
      const vd x = load_double(a + k * kHalf);
      if constexpr (Residual) {
        const vd d = x * q_sum - load_double(b + k * kHalf) * p_sum;
        s.part[k] += d > 0 ? d : vd{};
      } else {
        s.part[k] += x;
      }
    }
  });
  return total(s);
}

// The least entry whose running weight exceeds u times the total; -1 if all weights are 0.
template <bool Residual>
int64_t draw_weighted(const float* p, const float* q, double p_sum, double q_sum, int64_t n,
                      double u) {
  const int64_t lanes = (n + kMaxBlocks * kLanes - 1) / (kMaxBlocks * kLanes);
  const int64_t block = kLanes * (lanes < 4 ? 4 : lanes);
  double upto[kMaxBlocks], sum = 0;
  int64_t blocks = 0;
  for (int64_t i = 0; i < n; i += block) {
    const int64_t count = n - i < block ? n - i : block;
    upto[blocks++] = sum += block_sum<Residual>(p + i, q + i, p_sum, q_sum, count);
  }
  if (!(sum > 0)) return -1;
  const double position = u * sum;
  int64_t at = 0;
  while (at + 1 < blocks && upto[at] <= position) ++at;
  while (at > 0 && upto[at] == upto[at - 1]) --at;  // position == sum by rounding, empty end
  double running = at ? upto[at - 1] : 0;
  int64_t last = -1;  // with a weight
  const int64_t end = (at + 1) * block < n ? (at + 1) * block : n;
  for (int64_t i = at * block; i < end; ++i) {
    const double w = weight<Residual>(p[i], q[i], p_sum, q_sum);
    running += w;
    if (w > 0) last = i;
    if (running > position) break;
  }
  return last;
}

// A draw from p, or with a draft from the residual, or from p where that is empty by rounding.
static int64_t draw_token(const float* p, const float* q, double p_sum, double q_sum, int64_t n,
                          double u) {
  const int64_t v = q ? draw_weighted<true>(p, q, p_sum, q_sum, n, u) : -1;
  return v >= 0 ? v : draw_weighted<false>(p, p, p_sum, p_sum, n, u);
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

PIXLEAP_INLINE void note_fault(const AcceptParams& p, int64_t fault) {
  int64_t seen = __atomic_load_n(p.bad, __ATOMIC_RELAXED);
  while (fault < seen && !__atomic_compare_exchange_n(p.bad, &seen, fault, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
}

struct Position {
  const float *p, *q;
  double p_sum, q_sum;
  int64_t token;
};

PIXLEAP_INLINE const float* target_row(const AcceptParams& p, int64_t b, int64_t l) {
  return p.target + b * p.target_strides[0] + l * p.target_strides[1];
}

// Reads position l of sample b; false, with the fault noted, if something is wrong with it.
static bool read_position(const AcceptParams& p, int64_t b, int64_t l, Position& at) {
  at.p = target_row(p, b, l);
  at.q = p.draft + b * p.draft_strides[0] + l * p.draft_strides[1];
  at.token = p.drafted[b * p.drafted_strides[0] + l * p.drafted_strides[1]];
  AcceptFault fault;
  if (!row_sum(at.p, p.vocabulary, at.p_sum))
    fault = AcceptFault::target;
  else if (!row_sum(at.q, p.vocabulary, at.q_sum))
    fault = AcceptFault::draft;
  else if (at.token < 0 || at.token >= p.vocabulary)
    fault = AcceptFault::drafted;
  else
    return true;
  note_fault(p, accept_fault(p, b, l, fault));
  return false;
}

// u < (p / P) / (q / Q) for the drafted token, never where q is 0.
PIXLEAP_INLINE bool exact_decision(const Position& at, double u) {
  const double p = at.p[at.token], q = at.q[at.token];
  return q > 0 && u * (q * at.p_sum) < p * at.q_sum;
}

// Modes token and chain; decide(b, l, position, u) says whether a drafted token stays.
template <class Decide>
PIXLEAP_INLINE void accept_tokens(const AcceptParams& p, Decide&& decide, int64_t b, int64_t first,
                                  int64_t last) {
  int64_t* tokens = p.tokens + b * p.rows;
  bool* accepted = p.accepted + b * p.length;
  for (int64_t l = first; l < last; ++l) {
    Position at;
    if (!read_position(p, b, l, at)) return;
    const Philox4 words = accept_words(p, b, l);
    accepted[l] = decide(b, l, at, first_uniform(words));
    tokens[l] = accepted[l] ? at.token
                            : draw_token(at.p, at.q, at.p_sum, at.q_sum, p.vocabulary,
                                         second_uniform(words));
    if (accepted[l] || p.mode == AcceptMode::token) continue;
    for (int64_t i = l + 1; i < p.rows; ++i) tokens[i] = -1;
    for (int64_t i = l + 1; i < p.length; ++i) accepted[i] = false;
    return;
  }
  if (p.mode != AcceptMode::chain || p.rows == p.length) return;
  const float* bonus = target_row(p, b, p.length);
  double sum;
  if (!row_sum(bonus, p.vocabulary, sum))
    return note_fault(p, accept_fault(p, b, p.length, AcceptFault::target));
  tokens[p.length] = draw_token(bonus, nullptr, sum, 0, p.vocabulary,
                                second_uniform(accept_words(p, b, p.length)));
}

PIXLEAP_INLINE int64_t leading(const bool* accepted, int64_t n) {
  int64_t i = 0;
  while (i < n && accepted[i]) ++i;
  return i;
}

}  // namespace
}  // namespace pixleap
