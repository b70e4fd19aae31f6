#include "cuda/fixed_point.h"
#include "cuda/launch.h"
#include "cuda/triangle.h"
#include "ops/feature_moments/feature_moments.h"

namespace pixleap {
namespace {

constexpr int kThreads = 256;
constexpr int kStrip = 32, kChunk = 128;  // columns and rows of the passes over the features
constexpr int kStep = 16;                 // rows of a stage of the product

constexpr int kMicro = 4;           // rows and columns of a thread's share of a tile
constexpr int kTile = 16 * kMicro;  // more would not leave registers for float64 totals

template <class T>
using element_t = accumulate_t<T>;  // what is multiplied

__device__ inline float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double fused(double a, double b, double c) { return __fma_rn(a, b, c); }

// Where in the workspace what is for each block of rows and each column.
struct Layout {
  double *squares, *high, *low, *shift;  // (blocks, d)
  double* refused;                       // (1,): 1 where nothing may be added

  __device__ explicit Layout(const FeatureMomentsParams& p) {
    const int64_t size = parts(p.n, kFeatureBlock) * p.d;
    squares = p.workspace, high = squares + size, low = high + size, shift = low + size;
    refused = shift + size;
  }
};

// Calls add(value) in the order of the rows for column `first_column + lane`, in each of the first
// two warps; the others help to load. Chunks of rows are read while the one before is added up.
template <class T, class Add>
__device__ void for_each_row(const FeatureMomentsParams& p, int64_t first, int64_t last,
                             int64_t column, element_t<T> (&tile)[kChunk][kStrip], Add add) {
  constexpr int kLoads = kChunk * kStrip / kThreads;
  const int lane = static_cast<int>(threadIdx.x) % kStrip;
  const int from = static_cast<int>(threadIdx.x) / kStrip;
  const T* x = static_cast<const T*>(p.features) + column;
  const bool inside = column < p.d;
  element_t<T> next[kLoads];
  const auto load = [&](int64_t start) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t row = start + from + i * (kThreads / kStrip);
      next[i] = inside && row < last ? to_accumulate(x[row * p.row_stride]) : element_t<T>(0);
    }
  };
  load(first);
  for (int64_t start = first; start < last; start += kChunk) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) tile[from + i * (kThreads / kStrip)][lane] = next[i];
    __syncthreads();
    if (start + kChunk < last) load(start + kChunk);
    const int count = last - start < kChunk ? static_cast<int>(last - start) : kChunk;
    if (from < 2)
#pragma unroll 8
      for (int r = 0; r < count; ++r) add(static_cast<double>(tile[r][lane]));
    __syncthreads();
  }
}

// One block per block of rows and strip of columns: sums, squares, then the shift and the lever.
template <class T>
__global__ void __launch_bounds__(kThreads) scan_kernel(const FeatureMomentsParams p) {
  __shared__ element_t<T> tile[kChunk][kStrip];
  __shared__ double means[kStrip];
  const Layout at(p);
  const int64_t blocks = parts(p.n, kFeatureBlock), strips = parts(p.d, kStrip);
  const int64_t block = blockIdx.x / strips;
  const int64_t column = blockIdx.x % strips * kStrip + threadIdx.x % kStrip;
  const int64_t first = part_start(p.n, blocks, block);
  const int64_t last = part_start(p.n, blocks, block + 1);
  const bool squares = threadIdx.x >= kStrip, owns = threadIdx.x < 2 * kStrip && column < p.d;
  const double n = static_cast<double>(last - first);
  double sum = 0;
  for_each_row<T>(p, first, last, column, tile,
                  [&](double v) { sum = add_rn(sum, squares ? mul_rn(v, v) : v); });
  if (owns && squares) at.squares[block * p.d + column] = sum;
  if (owns && !squares) means[threadIdx.x] = static_cast<double>(static_cast<float>(sum / n));
  __syncthreads();
  const double shift = column < p.d ? means[threadIdx.x % kStrip] : 0;
  sum = 0;
  for_each_row<T>(p, first, last, column, tile,
                  [&](double v) { sum = add_rn(sum, add_rn(v, -shift)); });
  if (!owns || squares) return;
  const double a = mul_rn(n, shift) / 2, u = add_rn(sum, a), b = add_rn(u, -a);
  const double error = add_rn(add_rn(sum, -b), add_rn(a, -add_rn(u, -b)));
  const double t = mul_rn(u, 0x1.000001p24), high = add_rn(t, -add_rn(t, -u));
  at.shift[block * p.d + column] = shift;
  at.high[block * p.d + column] = high;
  at.low[block * p.d + column] = add_rn(add_rn(u, -high), error);
}

// One block: whether everything is finite and fits; if so the sums of x, else the mark.
__global__ void __launch_bounds__(1024) accept_kernel(const FeatureMomentsParams p) {
  const Layout at(p);
  const int64_t blocks = parts(p.n, kFeatureBlock);
  int bad = 0;
  for (int64_t c = threadIdx.x; c < p.d; c += blockDim.x) {
    const int64_t* diagonal = p.second + c * (c + 3);
    double total = static_cast<double>(diagonal[1]) * 0x1p-10;
    for (int64_t b = 0; b < blocks; ++b) total += at.squares[b * p.d + c];
    if (spoiled(diagonal) || !(total < kFixedLimit)) bad = 1;
  }
  bad = __syncthreads_or(bad);
  if (threadIdx.x == 0) *at.refused = bad;
  for (int64_t c = threadIdx.x; c < p.d; c += blockDim.x) {
    if (bad) {
      p.second[c * (c + 3)] = 0;
      p.second[c * (c + 3) + 1] = kSpoiled;
      continue;
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t i = b * p.d + c;
      const auto rows = part_start(p.n, blocks, b + 1) - part_start(p.n, blocks, b);
      const double half = static_cast<double>(rows) / 2;
      const Two sum = two_sum(at.high[i], mul_rn(half, at.shift[i]));
      add_fixed(p.first + 2 * c, {sum.high, add_rn(sum.low, at.low[i])});
    }
  }
}

// kStep rows of kTile columns as they enter the product, a column per thread.
template <class T>
struct Loader {
  static constexpr int kRows = kThreads / kTile, kLoads = kStep / kRows;
  const T* x;
  int64_t stride;
  double shift;
  int column, row;
  bool inside;
  element_t<T> next[kLoads];

  __device__ Loader(const FeatureMomentsParams& p, int64_t first_column) {
    column = static_cast<int>(threadIdx.x) % kTile, row = static_cast<int>(threadIdx.x) / kTile;
    inside = first_column + column < p.d;
    x = static_cast<const T*>(p.features) + first_column + column;
    stride = p.row_stride;
  }
  __device__ void load(int64_t start, int64_t end) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t r = start + row + i * kRows;
      // In float64, so that the mean does not depend on the rounding of the difference.
      next[i] = inside && r < end ? static_cast<element_t<T>>(add_rn(
                                        static_cast<double>(to_accumulate(x[r * stride])), -shift))
                                  : element_t<T>(0);
    }
  }
  __device__ void store(element_t<T> (&to)[kStep][kTile]) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) to[row + i * kRows][column] = next[i];
  }
};

// One block per tile of the triangle: centred products in the order of the rows, with the sums of
// at most 128 of them in the features' precision; then their place among the totals.
template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    product_kernel(const FeatureMomentsParams p) {
  using E = element_t<T>;
  alignas(16) __shared__ E left[2][kStep][kTile], right[2][kStep][kTile];
  const Layout at(p);
  if (*at.refused != 0) return;
  const TrianglePlace place = triangle_place(blockIdx.x);
  const int64_t i0 = place.row * kTile, j0 = place.column * kTile;
  const int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;
  Loader<T> a(p, i0);
  Loader<T> b(p, j0);
  const int64_t blocks = parts(p.n, kFeatureBlock);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = part_start(p.n, blocks, block);
    const int64_t rows = part_start(p.n, blocks, block + 1) - first;
    const int64_t subs = parts(rows, kFeatureSubBlock);
    const double* shifts = at.shift + block * p.d;
    a.shift = a.inside ? shifts[i0 + a.column] : 0;
    b.shift = b.inside ? shifts[j0 + b.column] : 0;
    double total[kMicro][kMicro] = {};
    for (int64_t sub = 0; sub < subs; ++sub) {
      const int64_t start = first + part_start(rows, subs, sub);
      const int64_t end = first + part_start(rows, subs, sub + 1);
      E sum[kMicro][kMicro] = {};
      a.load(start, end), b.load(start, end);
      int stage = 0;
      for (int64_t r = start; r < end; r += kStep, stage ^= 1) {
        a.store(left[stage]), b.store(right[stage]);
        __syncthreads();
        if (r + kStep < end) a.load(r + kStep, end), b.load(r + kStep, end);
#pragma unroll
        for (int k = 0; k < kStep; ++k) {
          E x[kMicro], y[kMicro];
#pragma unroll
          for (int i = 0; i < kMicro; ++i) x[i] = left[stage][k][ty * kMicro + i];
#pragma unroll
          for (int j = 0; j < kMicro; ++j) y[j] = right[stage][k][tx * kMicro + j];
#pragma unroll
          for (int i = 0; i < kMicro; ++i)
#pragma unroll
            for (int j = 0; j < kMicro; ++j) sum[i][j] = fused(x[i], y[j], sum[i][j]);
        }
      }
      __syncthreads();  // the next rows start with stage 0 again
#pragma unroll
      for (int i = 0; i < kMicro; ++i)
#pragma unroll
        for (int j = 0; j < kMicro; ++j) total[i][j] = add_rn(total[i][j], sum[i][j]);
    }
    const double *high = at.high + block * p.d, *low = at.low + block * p.d;
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
      const int64_t row = i0 + ty * kMicro + i;
      if (row >= p.d) continue;
      const double si = shifts[row], hi = high[row], lo = low[row];
#pragma unroll
      for (int j = 0; j < kMicro; ++j) {
        const int64_t column = j0 + tx * kMicro + j;
        if (column > row) continue;
        const double s = shifts[column];
        // A float32 times 29 bits is exact in float64.
        const Two shifted = two_sum(mul_rn(si, high[column]), mul_rn(hi, s));
        const Two sum = two_sum(shifted.high, total[i][j]);
        const double rest = add_rn(mul_rn(si, low[column]), mul_rn(lo, s));
        add_fixed(p.second + row * (row + 1) + 2 * column,
                  {sum.high, add_rn(add_rn(shifted.low, sum.low), rest)});
      }
    }
  }
}

}  // namespace

void feature_moments_cuda(const FeatureMomentsParams& p, const Device& device) {
  const int64_t blocks = parts(p.n, kFeatureBlock);
  with_cuda_type(p.dtype, [&]<class T>() {
    launch(scan_kernel<T>, static_cast<unsigned>(blocks * parts(p.d, kStrip)), kThreads, device, p);
    launch(accept_kernel, 1u, 1024, device, p);
    const int64_t side = parts(p.d, kTile);
    launch(product_kernel<T>, static_cast<unsigned>(side * (side + 1) / 2), kThreads, device, p);
  });
}

}  // namespace pixleap
