// One row of probabilities on the GPU, taken by a block, in float64. Products are rounded before
// they are subtracted, so that p = q leaves a residual of exactly 0, as on the CPU.
#pragma once

#include "cuda/launch.h"
#include "ops/speculative_accept/speculative_accept.h"

namespace pixleap {
namespace {

constexpr int kRowThreads = 128;

struct RowShared {
  double part[kRowThreads];
  int64_t found;
};

__device__ inline double block_total(double x, RowShared& s) {
  s.part[threadIdx.x] = x;
  __syncthreads();
  for (int step = kRowThreads / 2; step; step /= 2) {
    if (threadIdx.x < step) s.part[threadIdx.x] += s.part[threadIdx.x + step];
    __syncthreads();
  }
  const double total = s.part[0];
  __syncthreads();
  return total;
}

// The sum of a row; false if it is no distribution.
__device__ inline bool row_sum(const float* x, int64_t n, double& sum, RowShared& s) {
  double part = 0;
  int bad = 0;
  for (int64_t i = threadIdx.x; i < n; i += kRowThreads) {
    bad |= !(x[i] >= 0.f);
    part += x[i];
  }
  sum = block_total(part, s);
  return !__syncthreads_or(bad) && sum > 0 && sum < INFINITY;
}

// p, or where q is given (p / P - q / Q)+ times P Q.
__device__ inline double weight(const float* p, const float* q, double p_sum, double q_sum,
                                int64_t i) {
  if (!q) return p[i];
  const double d = __dsub_rn(__dmul_rn(p[i], q_sum), __dmul_rn(q[i], p_sum));
  return d > 0 ? d : 0;
}

// The least entry whose running weight exceeds u times the total; -1 if all weights are 0.
__device__ inline int64_t draw_weighted(const float* p, const float* q, double p_sum, double q_sum,
                                        int64_t n, double u, RowShared& s) {
  const int64_t chunk = (n + kRowThreads - 1) / kRowThreads;
  const int64_t begin = threadIdx.x * chunk, end = begin + chunk < n ? begin + chunk : n;
  double part = 0;
  for (int64_t i = begin; i < end; ++i) part += weight(p, q, p_sum, q_sum, i);
  s.part[threadIdx.x] = part;
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0, before = 0;
    int last = 0;
    for (int t = 0; t < kRowThreads; ++t) {
      total += s.part[t];
      if (s.part[t] > 0) last = t;
    }
    int at = 0;
    while (at < last && before + s.part[at] <= u * total) before += s.part[at++];
    while (at < last && !(s.part[at] > 0)) ++at;
    int64_t found = -1;
    for (int64_t i = at * chunk; total > 0 && i < n && i < (at + 1) * chunk; ++i) {
      const double w = weight(p, q, p_sum, q_sum, i);
      before += w;
      if (w > 0) found = i;
      if (w > 0 && before > u * total) break;
    }
    s.found = found;
  }
  __syncthreads();
  const int64_t found = s.found;
  __syncthreads();
  return found;
}

// A draw from p, or with a draft from the residual, or from p where that is empty by rounding.
__device__ inline int64_t draw_token(const float* p, const float* q, double p_sum, double q_sum,
                                     int64_t n, double u, RowShared& s) {
  const int64_t v = q ? draw_weighted(p, q, p_sum, q_sum, n, u, s) : -1;
  return v >= 0 ? v : draw_weighted(p, nullptr, p_sum, 0, n, u, s);
}

struct DevicePosition {
  const float *p, *q;
  double p_sum, q_sum;
  int64_t token;
};

__device__ inline const float* target_row(const AcceptParams& p, int64_t b, int64_t l) {
  return p.target + b * p.target_strides[0] + l * p.target_strides[1];
}

__device__ inline bool read_position(const AcceptParams& p, int64_t b, int64_t l,
                                     DevicePosition& at, RowShared& s) {
  at.p = target_row(p, b, l);
  at.q = p.draft + b * p.draft_strides[0] + l * p.draft_strides[1];
  at.token = p.drafted[b * p.drafted_strides[0] + l * p.drafted_strides[1]];
  const bool sound = row_sum(at.p, p.vocabulary, at.p_sum, s);
  return row_sum(at.q, p.vocabulary, at.q_sum, s) && sound && at.token >= 0 &&
         at.token < p.vocabulary;
}

__device__ inline bool exact_decision(const DevicePosition& at, double u) {
  const double p = at.p[at.token], q = at.q[at.token];
  return q > 0 && u * __dmul_rn(q, at.p_sum) < __dmul_rn(p, at.q_sum);
}

// Modes token (a block per position) and chain (a block per sample). decide(p, at, u, shared) gives
// 1 or 0, or -1 for a fault; what the CPU refuses gets token -1 and is not accepted.
template <class Params, class Decide>
__global__ void __launch_bounds__(kRowThreads) verify_kernel(const Params p, const Decide decide) {
  __shared__ RowShared shared;
  const bool chain = p.mode == AcceptMode::chain, writes = threadIdx.x == 0;
  const int64_t items = chain ? p.batch : p.batch * p.length;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t b = chain ? item : item / p.length;
    const int64_t first = chain ? 0 : item % p.length, last = chain ? p.length : first + 1;
    int64_t* tokens = p.tokens + b * p.rows;
    bool* accepted = p.accepted + b * p.length;
    int64_t l = first;
    for (bool stays = true; stays && l < last; ++l) {
      DevicePosition at;
      const bool sound = read_position(p, b, l, at, shared);
      const Philox4 words = accept_words(p, b, l);
      const int decision = sound ? decide(p, at, first_uniform(words), shared) : -1;
      stays = decision == 1;
      int64_t token = at.token;
      if (decision == 0)
        token =
            draw_token(at.p, at.q, at.p_sum, at.q_sum, p.vocabulary, second_uniform(words), shared);
      if (writes) {
        tokens[l] = decision < 0 ? -1 : token;
        accepted[l] = stays;
        if (!stays && chain) {
          for (int64_t i = l + 1; i < p.rows; ++i) tokens[i] = -1;
          for (int64_t i = l + 1; i < p.length; ++i) accepted[i] = false;
          p.accepted_length[b] = l;
        }
      }
      if (!stays && chain) l = p.length + 1;  // no bonus
    }
    if (!chain || l > p.length) continue;
    if (writes) p.accepted_length[b] = p.length;
    if (p.rows == p.length) continue;
    const float* bonus = target_row(p, b, p.length);
    double sum;
    int64_t token = -1;
    if (row_sum(bonus, p.vocabulary, sum, shared))
      token = draw_token(bonus, nullptr, sum, 0, p.vocabulary,
                         second_uniform(accept_words(p, b, p.length)), shared);
    if (writes) tokens[p.length] = token;
  }
}

__global__ void accepted_length_kernel(const AcceptParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; b < p.batch;
       b += step) {
    int64_t l = 0;
    while (l < p.length && p.accepted[b * p.length + l]) ++l;
    p.accepted_length[b] = l;
  }
}

template <class Params, class Decide>
void launch_verify(const Params& p, const Decide& decide, const Device& device) {
  const bool chain = p.mode == AcceptMode::chain;
  const int64_t items = chain ? p.batch : p.batch * p.length;
  if (items > 0)
    launch(verify_kernel<Params, Decide>, grid_for(items, 1), kRowThreads, device, p, decide);
  if (!chain)
    launch(accepted_length_kernel, grid_for(p.batch, kRowThreads), kRowThreads, device,
           static_cast<const AcceptParams&>(p));
}

}  // namespace
}  // namespace pixleap
