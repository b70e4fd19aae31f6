// All pairs of rows of two sets (or of one with itself): the products of a tile of 128 rows and 64
// columns in the registers of a block, from which epilogues go on. simd/pairwise.h tells of the
// centre, the scale and the error of a distance.
#pragma once

#include "core/pairwise.h"
#include "cuda/launch.h"

namespace pixleap {

constexpr int kPairThreads = 256;               // 16 x 16
constexpr int kPairRows = 8, kPairColumns = 4;  // of a thread, next to each other
constexpr int kPairTileRows = 16 * kPairRows, kPairTileColumns = 16 * kPairColumns;
constexpr int kPairDepth = 16;  // of a stage
constexpr unsigned kAllLanes = 0xffffffffu;

struct PairStages {  // four more than a tile, so that transposed stores spread over the banks
  alignas(16) float rows[2][kPairDepth][kPairTileRows + 4];
  alignas(16) float columns[2][kPairDepth][kPairTileColumns + 4];
};

template <class T>
__device__ const T* pair_row(const PairwiseSet& set, int64_t row) {
  return static_cast<const T*>(set.data) + row * set.stride;
}

// The power of two that brings the largest centred coordinate to about 1.
__device__ inline float pair_scale(const PairwiseSets& s) {
  const float most = __uint_as_float(*s.largest);
  int exponent = 0;
  if (most > 0 && most <= 3.402823466e38f) frexpf(most, &exponent);
  exponent = exponent > 126 ? 126 : exponent < -126 ? -126 : exponent;
  return ldexpf(1.f, -exponent);
}

// See simd/pairwise.h.
__device__ inline float distance_error(int64_t depth) {
  return static_cast<float>(depth + 64) * 0x1.01p-24f;
}
constexpr float kDistanceFloor = 1e-36f;

__device__ inline float squared_distance(float norms, float dot) {
  const float d = __fsub_rn(norms, __fadd_rn(dot, dot));
  return d < 0 ? 0 : d;  // NaN stays
}

// Up to four elements; zeros after the n-th.
template <class T>
__device__ void load_four(const T* x, int64_t n, bool aligned, float (&to)[4]) {
  struct alignas(4 * sizeof(T)) Four {
    T v[4];
  };
  if (aligned && n >= 4) {
    const Four four = *reinterpret_cast<const Four*>(x);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = to_accumulate(four.v[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = i < n ? to_accumulate(x[i]) : 0.f;
}

// kPairDepth elements of `64 * Blocks` rows: four threads per row, four elements each.
template <class T, int Blocks>
struct PairLoader {
  const T* x[Blocks];  // null: past the last row
  bool aligned[Blocks];
  int row, k;
  float next[Blocks][4];

  __device__ PairLoader(const PairwiseSet& set, int64_t first) {
    row = static_cast<int>(threadIdx.x) / 4, k = static_cast<int>(threadIdx.x) % 4 * 4;
#pragma unroll
    for (int i = 0; i < Blocks; ++i) {
      const int64_t at = first + row + 64 * i;
      x[i] = at < set.rows ? pair_row<T>(set, at) : nullptr;
      aligned[i] = reinterpret_cast<uintptr_t>(x[i]) % (4 * sizeof(T)) == 0;
    }
  }
  template <bool Centred>
  __device__ void load(const PairwiseSets& s, int64_t depth, float scale) {
    float centre[4] = {};
    const int64_t n = s.depth - depth - k;
    if constexpr (Centred) {
#pragma unroll
      for (int j = 0; j < 4; ++j) centre[j] = j < n ? s.centre[depth + k + j] : 0.f;
    }
#pragma unroll
    for (int i = 0; i < Blocks; ++i) {
      load_four(x[i] + depth + k, x[i] ? n : 0, aligned[i], next[i]);
      if constexpr (Centred) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          next[i][j] = x[i] && j < n ? __fmul_rn(__fsub_rn(next[i][j], centre[j]), scale) : 0.f;
      }
    }
  }
  template <int Stride>
  __device__ void store(float (&to)[kPairDepth][Stride]) const {
#pragma unroll
    for (int i = 0; i < Blocks; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) to[k + j][row + 64 * i] = next[i][j];
  }
};

// Products of rows [first_row, + 128) of x and [first_column, + 64) of y; those past the end are 0.
// Thread (ty, tx) holds rows ty * 8 and columns tx * 4 onwards. Every thread of the block comes
// here; the stages are free for other use after the next __syncthreads().
template <class T, bool Centred>
__device__ void pair_products(const PairwiseSets& s, int64_t first_row, int64_t first_column,
                              float scale, PairStages& stages,
                              float (&dots)[kPairRows][kPairColumns]) {
  PairLoader<T, 2> a(s.x, first_row);
  PairLoader<T, 1> b(s.y, first_column);
  const int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;
#pragma unroll
  for (int i = 0; i < kPairRows; ++i)
#pragma unroll
    for (int j = 0; j < kPairColumns; ++j) dots[i][j] = 0;
  a.template load<Centred>(s, 0, scale), b.template load<Centred>(s, 0, scale);
  int stage = 0;
  for (int64_t depth = 0; depth < s.depth; depth += kPairDepth, stage ^= 1) {
    a.store(stages.rows[stage]), b.store(stages.columns[stage]);
    __syncthreads();
    if (depth + kPairDepth < s.depth) {
      a.template load<Centred>(s, depth + kPairDepth, scale);
      b.template load<Centred>(s, depth + kPairDepth, scale);
    }
#pragma unroll
    for (int k = 0; k < kPairDepth; ++k) {
      float x[kPairRows], y[kPairColumns];
#pragma unroll
      for (int i = 0; i < kPairRows; ++i) x[i] = stages.rows[stage][k][ty * kPairRows + i];
#pragma unroll
      for (int j = 0; j < kPairColumns; ++j) y[j] = stages.columns[stage][k][tx * kPairColumns + j];
#pragma unroll
      for (int i = 0; i < kPairRows; ++i)
#pragma unroll
        for (int j = 0; j < kPairColumns; ++j) dots[i][j] = __fmaf_rn(x[i], y[j], dots[i][j]);
    }
  }
}

// In float64, from the rows as they were given, one pair per eight lanes of a warp, all of which
// come here; a null pair gives 0. The bits of the CPU.
template <class T>
__device__ double exact_squared_distance(const T* a, const T* b, int64_t depth) {
  double sum = 0;
  if (a)
    for (int64_t k = threadIdx.x % 8; k < depth; k += 8) {
      const double d =
          static_cast<double>(to_accumulate(a[k])) - static_cast<double>(to_accumulate(b[k]));
      sum = __dadd_rn(sum, __dmul_rn(d, d));
    }
  for (const int step : {4, 1, 2}) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

// Fills centre, largest and norms.
void prepare_distances_cuda(const PairwiseSets& s, const Device& device);

}  // namespace pixleap
