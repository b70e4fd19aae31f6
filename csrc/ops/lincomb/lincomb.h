// Linear combinations: n inputs -> m outputs in one pass.
//   out[j] = clamp(sum_i coefficients[j, i] * inputs[i] + noise_scale[j] * normal(seed, offset))
#pragma once

#include <span>

#include "core/dispatch.h"
#include "core/rows.h"

namespace pixleap {

constexpr int kLincombMaxInputs = 16;
constexpr int kLincombMaxOutputs = 3;

struct LincombOperand {
  void* data;                 // shape of Rows, any strides with the last one 1
  int64_t strides[kMaxDims];  // of the outer dimensions, in elements
};

struct LincombParams {
  DType dtype;
  Rows rows;
  int n_in, n_out;
  LincombOperand in[kLincombMaxInputs], out[kLincombMaxOutputs];
  double coefficients[kLincombMaxOutputs][kLincombMaxInputs];
  double noise_scale[kLincombMaxOutputs];  // all 0: no noise is drawn
  bool has_noise, has_clamp;
  double clamp;  // outputs are limited to [-clamp, clamp]
  uint64_t seed, offset;
};

// `coefficients` is the row-major (m, n) matrix; `noise_scale` has m numbers or none.
void lincomb(std::span<const Out> out, std::span<const View> inputs,
             std::span<const double> coefficients, double clamp,
             std::span<const double> noise_scale, int64_t seed, int64_t offset);

PIXLEAP_DECLARE_KERNELS(lincomb, LincombParams)

}  // namespace pixleap
