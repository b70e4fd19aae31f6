#include "cuda/pairwise.h"
#include "cuda/triangle.h"
#include "ops/pairwise_kernel_sum/pairwise_kernel_sum.h"

namespace pixleap {
namespace {

// How the pairs are cut: a block takes `rows` rows and `columns` columns, whole tiles of them, and
// writes for each of its rows the sum over its columns to partial[part of the columns][row]. Of one
// set with itself, rows and columns are cut alike, only blocks on and below the diagonal are done,
// and they also write partial[part of the rows][column]. Each partial sum has one writer.
struct Cut {
  int64_t rows, columns, parts;  // parts: of the columns
  int64_t row_parts;
  double* partial;  // (parts, N)

  explicit Cut(const PairwiseSets& s) {
    const int64_t most = s.rest_size / s.x.rows, n = s.y.rows;
    const int64_t tile = s.symmetric ? kPairTileRows : kPairTileColumns;
    columns = (n > 0 ? (n + most - 1) / most + tile - 1 : tile) / tile * tile;
    parts = (n + columns - 1) / columns;
    rows = s.symmetric ? columns : kPairTileRows;
    row_parts = (s.x.rows + rows - 1) / rows;
    partial = s.rest;
  }
};

// A value and how much of it is in `one`: exp(-x) = expm1(-x) + 1 where that has more digits.
struct Polynomial {
  float gamma, coef0;
  int64_t degree;
  __device__ float operator()(float dot, float, int&) const {
    const float base = __fmaf_rn(gamma, dot, coef0);
    float value = base;
    for (int64_t i = 1; i < degree; ++i) value *= base;
    return value;
  }
};
struct Gaussian {
  float gamma;
  __device__ float operator()(float dot, float norms, int& ones) const {
    const float x = gamma * squared_distance(norms, dot);
    const bool wide = x < 1.f;
    ones += wide;
    return wide ? expm1f(-x) : expf(-x);
  }
};

template <class T, bool Centred, class F>
__global__ void __launch_bounds__(kPairThreads, 2)
    sum_kernel(const PairwiseSets s, const Cut cut, F f, double gamma) {
  __shared__ PairStages stages;
  __shared__ double column_sums[kPairThreads / 32][kPairTileColumns];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  int64_t row_part, part;
  if (s.symmetric) {
    const TrianglePlace place = triangle_place(blockIdx.x);
    row_part = place.row, part = place.column;
  } else {
    row_part = blockIdx.x % cut.row_parts, part = blockIdx.x / cut.row_parts;
  }
  const int64_t begin_row = row_part * cut.rows, begin_column = part * cut.columns;
  const int64_t end_row = begin_row + cut.rows < s.x.rows ? begin_row + cut.rows : s.x.rows;
  const int64_t end_column =
      begin_column + cut.columns < s.y.rows ? begin_column + cut.columns : s.y.rows;
  double* of_rows = cut.partial + part * s.x.rows;
  double* of_columns = cut.partial + row_part * s.x.rows;
  for (int64_t i = begin_row + thread; i < end_row; i += kPairThreads) of_rows[i] = 0;
  if (s.symmetric && row_part != part)
    for (int64_t i = begin_column + thread; i < end_column; i += kPairThreads) of_columns[i] = 0;
  float scale = 1.f;
  if constexpr (Centred) {
    scale = pair_scale(s);
    const double wanted = gamma / (static_cast<double>(scale) * static_cast<double>(scale));
    f.gamma = static_cast<float>(wanted < 3.402823466e38 ? wanted : 3.402823466e38);
  }
  for (int64_t first_row = begin_row; first_row < end_row; first_row += kPairTileRows)
    for (int64_t first_column = begin_column; first_column < end_column;
         first_column += kPairTileColumns) {
      if (s.symmetric && first_row + kPairTileRows <= first_column + 1) continue;
      __syncthreads();  // before the stages and sums of the last tile are written over
      float dots[kPairRows][kPairColumns];
      pair_products<T, Centred>(s, first_row, first_column, scale, stages, dots);
      const int64_t row0 = first_row + thread / 16 * kPairRows;
      const int64_t column0 = first_column + thread % 16 * kPairColumns;
      float columns[kPairColumns] = {};
      unsigned column_ones = 0;  // a byte each
#pragma unroll
      for (int i = 0; i < kPairRows; ++i) {
        const int64_t row = row0 + i;
        const float norm = Centred && row < end_row ? s.x.norms[row] : 0.f;
        float sum = 0;
        int ones = 0;
#pragma unroll
        for (int j = 0; j < kPairColumns; ++j) {
          const int64_t column = column0 + j;
          if (row >= end_row || column >= end_column || (s.symmetric && column >= row)) continue;
          int one = 0;
          const float value = f(dots[i][j], Centred ? norm + s.y.norms[column] : 0.f, one);
          sum += value, ones += one;
          columns[j] += value, column_ones += static_cast<unsigned>(one) << (8 * j);
        }
        double total = static_cast<double>(sum) + ones;
        for (int step = 8; step; step /= 2) total += __shfl_xor_sync(kAllLanes, total, step);
        if (lane % 16 == 0 && row < end_row) of_rows[row] += total;
      }
      if (!s.symmetric) continue;
#pragma unroll
      for (int j = 0; j < kPairColumns; ++j) {
        double total = static_cast<double>(columns[j]) + (column_ones >> (8 * j) & 255u);
        total += __shfl_xor_sync(kAllLanes, total, 16);
        if (lane < 16) column_sums[thread / 32][thread % 16 * kPairColumns + j] = total;
      }
      __syncthreads();
      if (thread < kPairTileColumns && first_column + thread < end_column) {
        double total = 0;
        for (int i = 0; i < kPairThreads / 32; ++i) total += column_sums[i][thread];
        of_columns[first_column + thread] += total;
      }
    }
}

__global__ void __launch_bounds__(kPairThreads)
    total_kernel(double* out, int64_t rows, const Cut cut) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kPairThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPairThreads + threadIdx.x; i < rows;
       i += step) {
    double sum = 0;
    for (int64_t part = 0; part < cut.parts; ++part) sum += cut.partial[part * rows + i];
    out[i] = sum;
  }
}

}  // namespace

void pairwise_kernel_sum_cuda(const PairwiseKernelSumParams& p, const Device& device) {
  const PairwiseSets& s = p.sets;
  const Cut cut(s);
  const int64_t blocks = s.symmetric ? cut.parts * (cut.parts + 1) / 2 : cut.parts * cut.row_parts;
  const bool gaussian = p.kernel == PairKernel::gaussian;
  if (gaussian && blocks > 0) prepare_distances_cuda(s, device);
  with_cuda_type(s.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>) {
      if (blocks == 0) return;
      const Gaussian g{0.f};
      const Polynomial polynomial{static_cast<float>(p.gamma), static_cast<float>(p.coef0),
                                  p.degree};
      if (gaussian)
        launch(sum_kernel<T, true, Gaussian>, static_cast<unsigned>(blocks), kPairThreads, device,
               s, cut, g, p.gamma);
      else
        launch(sum_kernel<T, false, Polynomial>, static_cast<unsigned>(blocks), kPairThreads,
               device, s, cut, polynomial, p.gamma);
    }
  });
  launch(total_kernel, grid_for(s.x.rows, kPairThreads), kPairThreads, device, p.out, s.x.rows,
         cut);
}

}  // namespace pixleap
