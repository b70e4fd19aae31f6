// What the pairwise ops do first: a common centre, the largest centred coordinate, squared norms.
#include "cuda/pairwise.h"

namespace pixleap {
namespace {

constexpr int kStrip = 32;

// 32 columns per block: the mean of up to 256 rows of each set.
template <class T>
__global__ void __launch_bounds__(kPairThreads) centre_kernel(const PairwiseSets s) {
  constexpr int kParts = kPairThreads / kStrip;
  __shared__ double sums[kParts][kStrip];
  const int lane = static_cast<int>(threadIdx.x) % kStrip;
  const int part = static_cast<int>(threadIdx.x) / kStrip;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kStrip + lane;
  if (blockIdx.x == 0 && threadIdx.x == 0) *s.largest = 0;
  int64_t count = 0;
  double sum = 0;
  for (int set = 0; set < (s.symmetric ? 1 : 2); ++set) {
    const int64_t all = set ? s.y.rows : s.x.rows, stride = set ? s.y.stride : s.x.stride;
    const T* x = static_cast<const T*>(set ? s.y.data : s.x.data) + column;
    const int64_t step = all / 256 + 1, rows = (all + step - 1) / step;
    count += rows;
    if (column < s.depth)
      for (int64_t i = part; i < rows; i += kParts)
        sum += static_cast<double>(to_accumulate(x[i * step * stride]));
  }
  sums[part][lane] = sum;
  __syncthreads();
  if (part > 0 || column >= s.depth) return;
  for (int i = 1; i < kParts; ++i) sum += sums[i][lane];
  s.centre[column] = static_cast<float>(sum / static_cast<double>(count));
}

// One warp per row. Largest: of the centred coordinates, into s.largest; else squared norms.
template <class T, bool Largest>
__global__ void __launch_bounds__(kPairThreads) rows_kernel(const PairwiseSets s) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t rows = s.x.rows + (s.symmetric ? 0 : s.y.rows);
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kPairThreads / 32);
  const float scale = Largest ? 1.f : pair_scale(s);
  float most = 0;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kPairThreads + threadIdx.x) / 32; i < rows;
       i += warps) {
    const bool of_x = i < s.x.rows;
    const int64_t row = of_x ? i : i - s.x.rows;
    const T* x = of_x ? pair_row<T>(s.x, row) : pair_row<T>(s.y, row);
    const bool aligned = reinterpret_cast<uintptr_t>(x) % (4 * sizeof(T)) == 0;
    double sum = 0;
    for (int64_t k = lane * 4; k < s.depth; k += 128) {
      float v[4];
      load_four(x + k, s.depth - k, aligned, v);
      for (int j = 0; j < 4 && k + j < s.depth; ++j) {
        const float c = __fmul_rn(__fsub_rn(v[j], s.centre[k + j]), scale);
        if (Largest)
          most = fmaxf(most, fabsf(c));
        else
          sum += static_cast<double>(c) * static_cast<double>(c);
      }
    }
    if constexpr (!Largest) {
      for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
      if (lane == 0) (of_x ? s.x.norms : s.y.norms)[row] = static_cast<float>(sum);
    }
  }
  if constexpr (Largest) {
    for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, step));
    if (lane == 0) atomicMax(s.largest, __float_as_uint(most));  // of numbers >= 0, as their bits
  }
}

}  // namespace

void prepare_distances_cuda(const PairwiseSets& s, const Device& device) {
  const unsigned strips = static_cast<unsigned>((s.depth + kStrip - 1) / kStrip);
  const unsigned grid = grid_for((s.x.rows + s.y.rows) * 32, kPairThreads);
  with_cuda_type(s.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>) {
      launch(centre_kernel<T>, strips > 0 ? strips : 1u, kPairThreads, device, s);
      launch(rows_kernel<T, true>, grid, kPairThreads, device, s);
      launch(rows_kernel<T, false>, grid, kPairThreads, device, s);
    }
  });
}

}  // namespace pixleap
