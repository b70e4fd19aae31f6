// second[t] += sum over rows x_i x_j (t = i (i + 1) / 2 + j, j <= i), first[i] += sum over rows
// x_i, as 128-bit integers in units of 2^-74: adding is exact, so it does not matter in which order
// blocks of rows are added, or on which machine.
#pragma once

#include "core/dispatch.h"

namespace pixleap {

constexpr int kFixedPoint = 74;            // bits behind the point
constexpr double kFixedLimit = 0x1p52;     // sums of squares stay below
constexpr int64_t kFeatureBlock = 2048;    // rows that are centred together, at most
constexpr int64_t kFeatureSubBlock = 128;  // rows that lanes add before float64 totals do, at most
constexpr int64_t kFeatureTile = 96;       // columns: whole panels of every ISA and element type

// n rows in `count` equal parts (but for one row). Static: ISA files include this.
static constexpr int64_t parts(int64_t n, int64_t most) { return (n + most - 1) / most; }
static constexpr int64_t part_start(int64_t n, int64_t count, int64_t i) {
  return n / count * i + (i < n % count ? i : n % count);
}

struct FeatureMomentsParams {
  const void* features;  // (N, d), stride 1 along d
  DType dtype;
  int64_t n, d, row_stride;
  int64_t* second;  // (d (d + 1) / 2, 2): low and high half
  int64_t* first;   // (d, 2)
  // Scratch; columns is d rounded up to whole tiles.
  int64_t columns;
  double* sums;     // (blocks, columns): sum of x over a block
  double* squares;  // (blocks, columns)
  float* shift;     // (columns): about the mean of a block
  double* lever;    // (2, columns): sum (x - shift) + n shift / 2 = 29 bits + the rest
  void* packed;     // a block of rows x - shift, in panels of columns
  // What was wrong, if so; then nothing was added.
  int64_t* bad_row;   // -1
  int64_t* overflow;  // -1: the first column of squares that are too large
};

void feature_moments(const Out& second, const Out& first, const View& features);

PIXLEAP_DECLARE_KERNELS(feature_moments, FeatureMomentsParams)

}  // namespace pixleap
