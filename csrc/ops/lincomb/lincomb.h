// Linear combinations: n inputs -> m outputs in one pass.
//   out[j] = clamp(sum_i coefficients[j, i] * weights[i] * inputs[i]
//                  + noise_scale[j] * normal(seed, offset))
#pragma once

#include <span>

#include "core/dispatch.h"
#include "core/rows.h"

namespace pixleap {

constexpr int kLincombMaxInputs = 16;
constexpr int kLincombMaxOutputs = 4;
constexpr int64_t kLincombSampleStride = 2;  // neither 0 nor 1: never the inner one of Rows

struct LincombOperand {
  void* data;                 // shape of Rows; null: no weights
  int64_t strides[kMaxDims];  // of the outer dimensions, in elements; weights: then the inner one
  DType dtype;
};

// Numbers of one sample each: (B, m, n) coefficients or (B, m) noise scales.
struct LincombTable {
  const void* data;  // null: one set for all samples, in LincombParams
  int64_t strides[3];
  DType dtype;  // f32 or f64
};

struct LincombParams {
  Rows rows;
  int n_in, n_out;
  // The dtype of all operands, or `other` where they differ. `f64_sums`: one of them is float64.
  DType dtype;
  bool f64_sums, has_weights, has_noise, has_clamp;
  LincombOperand in[kLincombMaxInputs], weights[kLincombMaxInputs], out[kLincombMaxOutputs];
  double coefficients[kLincombMaxOutputs][kLincombMaxInputs];
  double noise_scale[kLincombMaxOutputs];
  LincombTable sample_coefficients, sample_noise_scale;
  int64_t sample_strides[kMaxDims];  // of kLincombSampleStride * sample, over the outer dimensions
  double clamp;                      // outputs are limited to [-clamp, clamp]
  uint64_t seed, offset, first_element;
};

// `coefficients` is the row-major (m, n) matrix, or empty and sample_coefficients is (B, m, n);
// `weights` is empty or has one entry per input; `noise_scale` has m numbers or none, or
// sample_noise_scale is (B, m).
void lincomb(std::span<const Out> out, std::span<const View> inputs,
             std::span<const double> coefficients, const Optional& sample_coefficients,
             std::span<const Optional> weights, double clamp, std::span<const double> noise_scale,
             const Optional& sample_noise_scale, int64_t seed, int64_t offset,
             int64_t first_element);

PIXLEAP_DECLARE_KERNELS(lincomb, LincombParams)

PIXLEAP_HD static inline int64_t lincomb_sample(const LincombParams& p, int64_t row) {
  return row_offset(p.rows, p.sample_strides, row) / kLincombSampleStride;
}
PIXLEAP_HD static inline double lincomb_number(const LincombTable& t, int64_t sample, int64_t j,
                                               int64_t i) {
  const int64_t at = sample * t.strides[0] + j * t.strides[1] + i * t.strides[2];
  return t.dtype == DType::f64 ? static_cast<const double*>(t.data)[at]
                               : static_cast<double>(static_cast<const float*>(t.data)[at]);
}
PIXLEAP_HD static inline double lincomb_coefficient(const LincombParams& p, int64_t sample, int j,
                                                    int i) {
  const LincombTable& t = p.sample_coefficients;
  return t.data ? lincomb_number(t, sample, j, i) : p.coefficients[j][i];
}
PIXLEAP_HD static inline double lincomb_noise_scale(const LincombParams& p, int64_t sample, int j) {
  const LincombTable& t = p.sample_noise_scale;
  return t.data ? lincomb_number(t, sample, j, 0) : p.noise_scale[j];
}

}  // namespace pixleap
