// Verification of a drafted Gaussian: x ~ q = N(draft_mean, draft_std^2) stays with probability
// min(1, p(x) / q(x)), p the target, else the residual (p - q)+ replaces it.
#pragma once

#include "core/dispatch.h"

namespace pixleap {

struct GaussianOperand {
  float* data;         // (B, L, D)
  int64_t strides[3];  // the last one 0 or 1
};

struct GaussianAcceptParams {
  int64_t batch, length, channels;  // B, L, D
  GaussianOperand target_mean, target_std, draft_mean, draft_std, x, out;
  bool* accepted;  // (B, L)
  uint64_t seed, offset, first_sample;
  int64_t* bad;  // CPU: the least position * 8 + GaussianFault, else stays
};

enum class GaussianFault : int64_t { target_mean, target_std, draft_mean, draft_std, x, none };

void gaussian_accept(const Out& out, const Out& accepted, const View& target_mean,
                     const View& target_std, const View& draft_mean, const View& draft_std,
                     const View& x, int64_t seed, int64_t offset, int64_t first_sample);

void gaussian_accept_cuda(const GaussianAcceptParams&, const Device&);

}  // namespace pixleap
