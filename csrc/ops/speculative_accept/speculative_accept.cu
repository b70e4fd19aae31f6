#include "ops/speculative_accept/row.cuh"

namespace pixleap {
namespace {

struct ExactDecision {
  __device__ int operator()(const AcceptParams&, const DevicePosition& at, double u,
                            RowShared&) const {
    return exact_decision(at, u);
  }
};

__device__ double log_ratio(const DevicePosition& at, int64_t v) {
  const double p = at.p[v], q = at.q[v];
  if (!(p > 0 && q > 0)) return p > 0 ? INFINITY : -INFINITY;
  return log(__dmul_rn(p, at.q_sum) / __dmul_rn(q, at.p_sum));
}

// log of the largest (p / P) / (q / Q).
__device__ double largest_log_ratio(const AcceptParams& p, const DevicePosition& at, RowShared& s) {
  double most = 0;
  for (int64_t i = threadIdx.x; i < p.vocabulary; i += kRowThreads)
    if (at.p[i] > 0) most = fmax(most, static_cast<double>(at.p[i]) / at.q[i]);
  s.part[threadIdx.x] = most;
  __syncthreads();
  for (int i = 0; i < kRowThreads; ++i) most = fmax(most, s.part[i]);
  __syncthreads();
  return log(__dmul_rn(most, at.q_sum) / at.p_sum);
}

// Mode joint, a block per sample; see kernel.inl. Sums are taken anew at every visit of a row:
// there is no scratch.
__global__ void __launch_bounds__(kRowThreads) joint_kernel(const SpeculativeAcceptParams p) {
  __shared__ RowShared shared;
  const bool writes = threadIdx.x == 0;
  DevicePosition at;
  for (int64_t b = blockIdx.x; b < p.batch; b += gridDim.x) {
    int64_t* tokens = p.tokens + b * p.length;
    double sum = 0;
    bool sound = true, possible = true;
    for (int64_t l = 0; l < p.length; ++l) {
      if (!read_position(p, b, l, at, shared)) {
        sound = false;
        break;
      }
      if (writes) tokens[l] = at.token;
      possible = possible && at.p[at.token] > 0 && at.q[at.token] > 0;
      if (possible) sum += log_ratio(at, at.token);
    }
    const Philox4 words = accept_words(p, b, p.length);
    const bool accepted = sound && possible && log(first_uniform(words)) < sum;
    if (writes) {
      for (int64_t l = 0; l < p.length; ++l) {
        p.accepted[b * p.length + l] = accepted;
        if (!sound) tokens[l] = -1;
      }
      p.accepted_length[b] = accepted ? p.length : 0;
    }
    if (!sound || accepted || p.length == 0) continue;
    double bound = 1;
    bool equal = false;
    for (uint64_t t = 0;; ++t) {
      if (t == kPlainTries) {
        double most = 0;
        for (int64_t l = 0; l < p.length; ++l) {
          read_position(p, b, l, at, shared);
          most += largest_log_ratio(p, at, shared);
        }
        equal = most < kEqualLogRatio;
        bound = -expm1(-most);
      }
      sum = 0;
      for (int64_t l = 0; l < p.length; ++l) {
        read_position(p, b, l, at, shared);
        const double u = first_uniform(joint_words(p, words, b, t, l));
        const int64_t v = draw_token(at.p, nullptr, at.p_sum, 0, p.vocabulary, u, shared);
        if (writes) tokens[l] = v;
        sum += log_ratio(at, v);
      }
      const double u = first_uniform(joint_words(p, words, b, t, p.length));
      if (equal || u * bound < -expm1(-sum)) break;
    }
  }
}

}  // namespace

void speculative_accept_cuda(const SpeculativeAcceptParams& p, const Device& device) {
  if (p.mode == AcceptMode::joint)
    launch(joint_kernel, grid_for(p.batch, 1), kRowThreads, device, p);
  else
    launch_verify(p, ExactDecision{}, device);
}

}  // namespace pixleap
