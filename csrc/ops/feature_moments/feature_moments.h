// second[t] += sum over rows x_i x_j (t = i (i + 1) / 2 + j, j <= i), first[i] += sum over rows
// x_i, as 128-bit integers in units of 2^-74: adding is exact, so it does not matter in which order
// blocks of rows are added, or on which machine.
#pragma once

#include "core/dispatch.h"

namespace pixleap {

constexpr int kFixedPoint = 74;          // bits behind the point
constexpr double kFixedLimit = 0x1p52;   // sums of squares stay below
constexpr int64_t kFeatureBlock = 1024;  // rows that are centred together

struct FeatureMomentsParams {
  const void* features;  // (N, d), stride 1 along d
  DType dtype;
  int64_t n, d, row_stride;
  int64_t* second;  // (d (d + 1) / 2, 2): low and high half
  int64_t* first;   // (d, 2)
  // Scratch.
  double* largest;  // (N): largest |x| of each row
  double* centred;  // (d): sum of x - shift over a block
  float* shift;     // (d): about the mean of a block
  char* packed;     // kFeatureBlock rows of x - shift, in panels of columns
  // What was wrong, if so; then nothing was added.
  int64_t* bad_row;  // -1
  bool* overflow;
};

// Columns rounded up to whole panels of the widest ISA.
constexpr int64_t feature_padding(int64_t d) { return (d + 95) / 48 * 48; }

void feature_moments(const Out& second, const Out& first, const View& features);

PIXLEAP_DECLARE_KERNELS(feature_moments, FeatureMomentsParams)

}  // namespace pixleap
