#include "cuda/pairwise.h"
#include "ops/pairwise_count/pairwise_count.h"

namespace pixleap {
namespace {

__global__ void __launch_bounds__(kPairThreads) zero_kernel(const PairwiseCountParams p) {
  const int64_t x = 2 * p.sets.x.rows, all = x + 2 * p.sets.y.rows;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kPairThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPairThreads + threadIdx.x; i < all;
       i += step)
    (i < x ? p.x_counts[i] : p.y_counts[i - x]) = 0;
}

// Nothing is nearer than 0, and NaN holds nothing: -inf leaves no doubt about either.
__device__ inline float scaled_radius(double radius, double scale) {
  return radius > 0 ? static_cast<float>(radius * scale * scale) : -INFINITY;
}

__device__ inline void add_count(int64_t* to, unsigned count) {
  if (count)  // integers: the order does not matter
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(count));
}

// One block per tile. in_x and in_y have a bit for each of a thread's pairs: whether the column is
// in the ball of the row, and the row in that of the column.
template <class T>
__global__ void __launch_bounds__(kPairThreads, 2) count_kernel(const PairwiseCountParams p) {
  __shared__ PairStages stages;
  const PairwiseSets& s = p.sets;
  const int64_t tiles = (s.y.rows + kPairTileColumns - 1) / kPairTileColumns;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row0 =
      blockIdx.x / tiles * kPairTileRows + static_cast<int>(threadIdx.x) / 16 * kPairRows;
  const int64_t column0 =
      blockIdx.x % tiles * kPairTileColumns + static_cast<int>(threadIdx.x) % 16 * kPairColumns;
  const float scale = pair_scale(s);
  float dots[kPairRows][kPairColumns];
  pair_products<T, true>(s, blockIdx.x / tiles * kPairTileRows,
                         blockIdx.x % tiles * kPairTileColumns, scale, stages, dots);
  const float relative = distance_error(s.depth);
  float column_norm[kPairColumns], column_radius[kPairColumns];
#pragma unroll
  for (int j = 0; j < kPairColumns; ++j) {
    const bool inside = column0 + j < s.y.rows;
    column_norm[j] = inside ? s.y.norms[column0 + j] : 0.f;
    column_radius[j] = inside ? scaled_radius(p.y_radii[column0 + j], scale) : -INFINITY;
  }
  unsigned in_x = 0, in_y = 0, doubt_x = 0, doubt_y = 0;
#pragma unroll
  for (int i = 0; i < kPairRows; ++i) {
    if (row0 + i >= s.x.rows) continue;
    const float norm = s.x.norms[row0 + i], radius = scaled_radius(p.x_radii[row0 + i], scale);
#pragma unroll
    for (int j = 0; j < kPairColumns; ++j) {
      if (column0 + j >= s.y.rows) continue;
      const float both = norm + column_norm[j], d = squared_distance(both, dots[i][j]);
      const float error = __fmaf_rn(relative, both, kDistanceFloor);
      const float high = d + error, low = d - error;
      const unsigned bit = 1u << (i * kPairColumns + j);
      // NaN (of overflow) is in doubt, too.
      if (high < radius)
        in_x |= bit;
      else if (!(low > radius))
        doubt_x |= bit;
      if (high < column_radius[j])
        in_y |= bit;
      else if (!(low > column_radius[j]))
        doubt_y |= bit;
    }
  }
  // In float64, four pairs at a time: those of the first four lanes that have one.
  for (;;) {
    const unsigned mine = doubt_x | doubt_y;
    const unsigned lanes = __ballot_sync(kAllLanes, mine != 0);
    if (!lanes) break;
    unsigned rest = lanes;
    for (int i = 0; i < lane / 8; ++i) rest &= rest - 1;
    const int source = rest ? __ffs(static_cast<int>(rest)) - 1 : -1;
    const int pair = mine ? __ffs(static_cast<int>(mine)) - 1 : 0;
    const int from = source < 0 ? 0 : source;
    const int64_t row = __shfl_sync(kAllLanes, row0 + pair / kPairColumns, from);
    const int64_t column = __shfl_sync(kAllLanes, column0 + pair % kPairColumns, from);
    const double found =
        exact_squared_distance<T>(source < 0 ? nullptr : pair_row<T>(s.x, row),
                                  source < 0 ? nullptr : pair_row<T>(s.y, column), s.depth);
    const int rank = __popc(lanes & ((1u << lane) - 1));  // which of the lanes with a doubt
    const double exact = __shfl_sync(kAllLanes, found, rank < 4 ? rank * 8 : 0);
    if (!mine || rank >= 4) continue;
    const unsigned bit = 1u << pair;
    if (doubt_x & bit && exact < p.x_radii[row0 + pair / kPairColumns]) in_x |= bit;
    if (doubt_y & bit && exact < p.y_radii[column0 + pair % kPairColumns]) in_y |= bit;
    doubt_x &= ~bit, doubt_y &= ~bit;
  }
  // Both counts in one word: a tile has at most 128.
#pragma unroll
  for (int i = 0; i < kPairRows; ++i) {
    const unsigned mask = 0xfu << (i * kPairColumns);
    unsigned both = __popc(in_x & mask) | __popc(in_y & mask) << 16;
    for (int step = 8; step; step /= 2) both += __shfl_xor_sync(kAllLanes, both, step);
    if (lane % 16 || row0 + i >= s.x.rows) continue;
    add_count(p.x_counts + 2 * (row0 + i), both & 0xffffu);
    add_count(p.x_counts + 2 * (row0 + i) + 1, both >> 16);
  }
#pragma unroll
  for (int j = 0; j < kPairColumns; ++j) {
    const unsigned mask = 0x11111111u << j;
    unsigned both = __popc(in_y & mask) | __popc(in_x & mask) << 16;
    both += __shfl_xor_sync(kAllLanes, both, 16);
    if (lane >= 16 || column0 + j >= s.y.rows) continue;
    add_count(p.y_counts + 2 * (column0 + j), both & 0xffffu);
    add_count(p.y_counts + 2 * (column0 + j) + 1, both >> 16);
  }
  static_assert(kPairRows == 8 && kPairColumns == 4);
}

}  // namespace

void pairwise_count_cuda(const PairwiseCountParams& p, const Device& device) {
  const PairwiseSets& s = p.sets;
  launch(zero_kernel, grid_for(2 * (s.x.rows + s.y.rows), kPairThreads), kPairThreads, device, p);
  if (s.x.rows == 0 || s.y.rows == 0) return;
  prepare_distances_cuda(s, device);
  const int64_t tiles = (s.x.rows + kPairTileRows - 1) / kPairTileRows *
                        ((s.y.rows + kPairTileColumns - 1) / kPairTileColumns);
  with_cuda_type(s.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>)
      launch(count_kernel<T>, static_cast<unsigned>(tiles), kPairThreads, device, p);
  });
}

}  // namespace pixleap
