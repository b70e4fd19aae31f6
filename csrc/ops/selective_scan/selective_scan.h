// The selective state-space recurrence of Mamba, per batch entry and channel e, over N states:
//   dt = delta + delta_bias, or softplus of it
//   h_n = exp(dt a_n) h_n + dt u b_n,  y = sum_n c_n h_n + d u, times silu(z)
#pragma once

#include "core/dispatch.h"

namespace pixleap {

constexpr int64_t kSelectiveScanStates = 256;  // the most: what a block of channels keeps at hand

struct SelectiveScanSequence {
  void* data;  // (B, L, E) or (B, L, N), stride 1 in the last dimension
  int64_t batch_stride, step_stride;
};

struct SelectiveScanParams {
  DType dtype;                              // of the sequences
  int64_t batch, length, channels, states;  // B, L, E, N
  SelectiveScanSequence y, u, delta, z;     // (B, L, E); z may be null; y may be u, delta or z
  SelectiveScanSequence b, c;               // (B, L, N)
  const float* a;                           // (E, N)
  int64_t a_stride;                         // of E
  const float *d, *delta_bias;              // (E,), may be null
  int64_t d_stride, delta_bias_stride;
  bool delta_softplus;
  const float* state;        // (B, E, N), null: zeros
  int64_t state_strides[2];  // of B and E
  float* final_state;        // (B, E, N), may be `state`
  int64_t final_state_strides[2];
};

void selective_scan(const Out& y, const Out& final_state, const View& u, const View& delta,
                    const View& a, const View& b, const View& c, const Optional& d,
                    const Optional& z, const Optional& delta_bias, bool delta_softplus,
                    const Optional& state);

PIXLEAP_DECLARE_KERNELS(selective_scan, SelectiveScanParams)

}  // namespace pixleap
