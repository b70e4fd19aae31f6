#include "cuda/pairwise.h"
#include "ops/pairwise_topk/pairwise_topk.h"

namespace pixleap {
namespace {

constexpr int64_t kMaxSplits = 32;  // a lane looks after the list of one split

// An ascending list in the registers of a warp: entry i is number i / 32 of lane i % 32. Of equal
// values the lower index comes first, so that the order of insertions does not matter.
template <class V, class I, int N>
struct WarpList {
  V value[N];
  I index[N];

  __device__ void clear() {
#pragma unroll
    for (int r = 0; r < N; ++r) value[r] = static_cast<V>(INFINITY), index[r] = -1;
  }
  __device__ V at(int64_t i) const {
    V v = value[0];
#pragma unroll
    for (int r = 1; r < N; ++r)
      if (i / 32 == r) v = value[r];
    return __shfl_sync(kAllLanes, v, static_cast<int>(i % 32));
  }
  __device__ I index_at(int64_t i) const {
    I v = index[0];
#pragma unroll
    for (int r = 1; r < N; ++r)
      if (i / 32 == r) v = index[r];
    return __shfl_sync(kAllLanes, v, static_cast<int>(i % 32));
  }
  // What stands last falls out.
  __device__ void insert(V v, I i) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int place = 0;
#pragma unroll
    for (int r = 0; r < N; ++r)
      place += __popc(__ballot_sync(
          kAllLanes, value[r] < v || (value[r] == v && index[r] >= 0 && index[r] < i)));
#pragma unroll
    for (int r = N - 1; r >= 0; --r) {
      V v_before = __shfl_up_sync(kAllLanes, value[r], 1);
      I i_before = __shfl_up_sync(kAllLanes, index[r], 1);
      const V v_carry = __shfl_sync(kAllLanes, value[r ? r - 1 : 0], 31);
      const I i_carry = __shfl_sync(kAllLanes, index[r ? r - 1 : 0], 31);
      if (lane == 0) v_before = v_carry, i_before = i_carry;
      const int entry = r * 32 + lane;
      if (entry == place) value[r] = v, index[r] = i;
      if (entry > place) value[r] = v_before, index[r] = i_before;
    }
  }
};

// The candidates of every row and split of the columns, (splits, N, kept), ascending.
struct Lists {
  int64_t splits, columns;  // columns: of a split, whole tiles
  float* values;
  int32_t* rows;

  explicit Lists(const PairwiseTopkParams& p) {
    const PairwiseSets& s = p.sets;
    const int64_t tiles = (s.y.rows + kPairTileColumns - 1) / kPairTileColumns;
    int64_t most = s.rest_size / (s.x.rows * p.kept);
    most = most < kMaxSplits ? most : kMaxSplits;
    columns = (tiles + most - 1) / most * kPairTileColumns;
    splits = (s.y.rows + columns - 1) / columns;
    values = reinterpret_cast<float*>(s.rest);
    rows = reinterpret_cast<int32_t*>(values + splits * s.x.rows * p.kept);
  }
};

union TopkShared {
  PairStages stages;
  float distances[kPairTileRows][kPairTileColumns + 1];
};

// One block per 128 rows and split: distances of a tile go through shared memory, and a warp enters
// what is near enough into the lists of 16 rows.
template <class T>
__global__ void __launch_bounds__(kPairThreads, 2)
    candidates_kernel(const PairwiseTopkParams p, const Lists lists) {
  constexpr int kPerWarp = kPairTileRows / (kPairThreads / 32);
  __shared__ TopkShared shared;
  __shared__ float worst[kPairTileRows];  // what a candidate has to be below
  const PairwiseSets& s = p.sets;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int64_t row_tiles = (s.x.rows + kPairTileRows - 1) / kPairTileRows;
  const int64_t first_row = blockIdx.x % row_tiles * kPairTileRows;
  const int64_t split = blockIdx.x / row_tiles, begin = split * lists.columns;
  const int64_t end = begin + lists.columns < s.y.rows ? begin + lists.columns : s.y.rows;
  const int64_t rows = s.x.rows - first_row < kPairTileRows ? s.x.rows - first_row : kPairTileRows;
  float* values = lists.values + (split * s.x.rows + first_row) * p.kept;
  int32_t* indices = lists.rows + (split * s.x.rows + first_row) * p.kept;
  for (int64_t i = thread; i < rows * p.kept; i += kPairThreads)
    values[i] = INFINITY, indices[i] = -1;
  for (int i = thread; i < kPairTileRows; i += kPairThreads) worst[i] = INFINITY;
  const float scale = pair_scale(s);
  for (int64_t first_column = begin; first_column < end; first_column += kPairTileColumns) {
    __syncthreads();  // the distances of the last tile have been read
    float dots[kPairRows][kPairColumns];
    pair_products<T, true>(s, first_row, first_column, scale, shared.stages, dots);
    __syncthreads();
    const int row0 = thread / 16 * kPairRows, column0 = thread % 16 * kPairColumns;
#pragma unroll
    for (int i = 0; i < kPairRows; ++i) {
      const int64_t row = first_row + row0 + i;
      const float norm = row < s.x.rows ? s.x.norms[row] : 0.f;
#pragma unroll
      for (int j = 0; j < kPairColumns; ++j) {
        const int64_t column = first_column + column0 + j;
        const bool counts = column < end && !(s.symmetric && column == row);
        shared.distances[row0 + i][column0 + j] =
            counts ? squared_distance(norm + s.y.norms[column], dots[i][j]) : INFINITY;
      }
    }
    __syncthreads();
    for (int r = thread / 32 * kPerWarp; r < (thread / 32 + 1) * kPerWarp && r < rows; ++r) {
      const float* distances = shared.distances[r];
      float limit = worst[r];
      const unsigned low = __ballot_sync(kAllLanes, distances[lane] < limit);
      const unsigned high = __ballot_sync(kAllLanes, distances[lane + 32] < limit);
      uint64_t near = static_cast<uint64_t>(high) << 32 | low;
      if (!near) continue;
      WarpList<float, int32_t, 3> list;
      list.clear();
#pragma unroll
      for (int i = 0; i < 3; ++i)
        if (i * 32 + lane < p.kept) {
          list.value[i] = values[r * p.kept + i * 32 + lane];
          list.index[i] = indices[r * p.kept + i * 32 + lane];
        }
      for (; near; near &= near - 1) {
        const int c = __ffsll(static_cast<long long>(near)) - 1;
        if (!(distances[c] < limit)) continue;
        list.insert(distances[c], static_cast<int32_t>(first_column + c));
        limit = list.at(p.kept - 1);
      }
#pragma unroll
      for (int i = 0; i < 3; ++i)
        if (i * 32 + lane < p.kept) {
          values[r * p.kept + i * 32 + lane] = list.value[i];
          indices[r * p.kept + i * 32 + lane] = list.index[i];
        }
      __syncwarp();
      if (lane == 0) worst[r] = limit;
    }
  }
}

// One warp per row: the candidates in float64, and a search of the row where one that was not kept
// could be nearer. See kernel.inl.
template <class T>
__global__ void __launch_bounds__(kPairThreads, 2)
    decide_kernel(const PairwiseTopkParams p, const Lists lists) {
  const PairwiseSets& s = p.sets;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kPairThreads / 32);
  const double scale = static_cast<double>(pair_scale(s));
  for (int64_t row = (static_cast<int64_t>(blockIdx.x) * kPairThreads + threadIdx.x) / 32;
       row < s.x.rows; row += warps) {
    const T* x = pair_row<T>(s.x, row);
    WarpList<double, int64_t, 2> list;
    list.clear();
    double worst = INFINITY;  // of the list's first k
    const auto offer = [&](double d, int64_t i) {
      if (!(d < worst || (d == worst && i < list.index_at(p.k - 1)))) return;
      list.insert(d, i);
      worst = list.at(p.k - 1);
    };
    // Whether a row whose float32 distance is at least `d` could be nearer than the k-th.
    const auto could_be_nearer = [&](float d) {
      const double scaled = worst * scale * scale;
      const double norms = 3 * static_cast<double>(s.x.norms[row]) + 2 * scaled;
      const double error = 1.01 * static_cast<double>(distance_error(s.depth)) * norms +
                           static_cast<double>(kDistanceFloor);
      return scaled > 0 && !(static_cast<double>(d) - error > scaled);
    };
    // Of the lists, the least candidate first; lane i stands in the list of split i.
    int64_t head = (lane * s.x.rows + row) * p.kept;
    int64_t left = lane < lists.splits ? p.kept : 0, found = 0;
    float last = 0;
    bool certain = false, more = true;
    while (more && !certain) {
      int32_t batch = -1;  // of this lane's eight
      for (int i = 0; i < 4 && more; ++i) {
        float value = left > 0 ? lists.values[head] : INFINITY;
        int32_t index = left > 0 ? lists.rows[head] : -1;
        int owner = index >= 0 ? lane : -1;
        for (int step = 16; step; step /= 2) {
          const float other = __shfl_xor_sync(kAllLanes, value, step);
          const int32_t other_index = __shfl_xor_sync(kAllLanes, index, step);
          const int other_owner = __shfl_xor_sync(kAllLanes, owner, step);
          if (other_owner >= 0 &&
              (owner < 0 || other < value || (other == value && other_index < index)))
            value = other, index = other_index, owner = other_owner;
        }
        more = owner >= 0 && found < p.kept;
        if (!more) break;
        if (found >= p.k && i == 0 && !could_be_nearer(value)) {
          certain = true;
          break;
        }
        if (lane == owner) ++head, --left;
        if (lane / 8 == i) batch = index;
        last = value;
        ++found;
      }
      const double d = exact_squared_distance<T>(
          batch < 0 ? nullptr : x, batch < 0 ? nullptr : pair_row<T>(s.y, batch), s.depth);
      for (int i = 0; i < 4; ++i) {
        const int32_t index = __shfl_sync(kAllLanes, batch, i * 8);
        const double distance = __shfl_sync(kAllLanes, d, i * 8);
        if (index >= 0) offer(distance, index);
      }
    }
    const int64_t others = s.symmetric ? s.y.rows - 1 : s.y.rows;
    if (!certain && found != others && !(found == p.kept && !could_be_nearer(last))) {
      list.clear();
      worst = INFINITY;
      for (int64_t first = 0; first < s.y.rows; first += 4) {
        const int64_t mine = first + lane / 8;
        const bool counts = mine < s.y.rows && !(s.symmetric && mine == row);
        const double d = exact_squared_distance<T>(
            counts ? x : nullptr, counts ? pair_row<T>(s.y, mine) : nullptr, s.depth);
        for (int i = 0; i < 4; ++i) {
          const double distance = __shfl_sync(kAllLanes, d, i * 8);
          const int64_t index = first + i;
          if (index < s.y.rows && !(s.symmetric && index == row)) offer(distance, index);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (i * 32 + lane < p.k) {
        p.distances[row * p.k + i * 32 + lane] = list.value[i];
        p.indices[row * p.k + i * 32 + lane] = list.index[i];
      }
  }
}

}  // namespace

void pairwise_topk_cuda(const PairwiseTopkParams& p, const Device& device) {
  const PairwiseSets& s = p.sets;
  prepare_distances_cuda(s, device);
  const Lists lists(p);
  const int64_t blocks = (s.x.rows + kPairTileRows - 1) / kPairTileRows * lists.splits;
  with_cuda_type(s.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>) {
      launch(candidates_kernel<T>, static_cast<unsigned>(blocks), kPairThreads, device, p, lists);
      launch(decide_kernel<T>, grid_for(s.x.rows * 32, kPairThreads), kPairThreads, device, p,
             lists);
    }
  });
}

}  // namespace pixleap
