// second[t] += sum over rows x_i x_j (t = i (i + 1) / 2 + j, j <= i), first[i] += sum over rows
// x_i, as 128-bit integers in units of 2^-74: adding is exact, so it does not matter in which order
// blocks of rows are added, or on which machine.
#pragma once

#include <span>

#include "core/dispatch.h"
#include "core/philox.h"  // PIXLEAP_HD

namespace pixleap {

constexpr int kFixedPoint = 74;            // bits behind the point
constexpr double kFixedLimit = 0x1p52;     // sums of squares stay below
constexpr int64_t kFeatureBlock = 2048;    // rows that are centred together, at most
constexpr int64_t kFeatureSubBlock = 128;  // rows that lanes add before float64 totals do, at most
constexpr int64_t kFeatureTile = 96;       // columns: whole panels of every ISA and element type

// n rows in `count` equal parts (but for one row). Static: ISA files include this.
PIXLEAP_HD static constexpr int64_t parts(int64_t n, int64_t most) { return (n + most - 1) / most; }
PIXLEAP_HD static constexpr int64_t part_start(int64_t n, int64_t count, int64_t i) {
  return n / count * i + (i < n % count ? i : n % count);
}

// A GPU does not wait to see whether features are acceptable: where they are not, it adds nothing
// and puts the least integer into every diagonal cell of `second`, which no sum of squares and no
// later sum can hide. feature_covariance makes NaN of it.
constexpr int64_t kSpoiled = INT64_MIN;  // the high half; the low one is 0
PIXLEAP_HD static constexpr bool spoiled(const int64_t* diagonal) {
  return diagonal[1] < kSpoiled / 2;
}

struct FeatureMomentsParams {
  const void* features;  // (N, d), stride 1 along d
  DType dtype;
  int64_t n, d, row_stride;
  int64_t* second;  // (d (d + 1) / 2, 2): low and high half
  int64_t* first;   // (d, 2)
  // Scratch; columns is d rounded up to whole tiles.
  int64_t columns;
  double* sums;       // (blocks, columns): sum of x over a block
  double* squares;    // (blocks, columns)
  float* shift;       // (columns): about the mean of a block
  double* lever;      // (2, columns): sum (x - shift) + n shift / 2 = 29 bits + the rest
  void* packed;       // a block of rows x - shift, in panels of columns
  double* workspace;  // CUDA, in place of the above: 4 blocks d + 1 numbers
  // What was wrong, if so; then nothing was added.
  int64_t* bad_row;   // -1
  int64_t* overflow;  // -1: the first column of squares that are too large
};

void feature_moments(const Out& second, const Out& first, std::span<const Out> scratch,
                     const View& features);

PIXLEAP_DECLARE_KERNELS(feature_moments, FeatureMomentsParams)

}  // namespace pixleap
