#include "ops/pairwise_topk/pairwise_topk.h"
#include "simd/compress.h"
#include "simd/pairwise.h"

namespace pixleap {
namespace {

constexpr double kInfinity = __builtin_inf();

// Into a list of n ascending values, in the place of the last. Of equal values the one with the
// lower index stays in front.
template <class Value, class Index>
PIXLEAP_INLINE void insert(Value value, Index index, Value* values, Index* indices, int64_t n) {
  int64_t i = n - 1;
  for (; i > 0 && (values[i - 1] > value || (values[i - 1] == value && indices[i - 1] > index));
       --i) {
    values[i] = values[i - 1];
    indices[i] = indices[i - 1];
  }
  values[i] = value;
  indices[i] = index;
}

void keep_candidates(const PairwiseTopkParams& p, const PairwiseSets& s, const Tile& t) {
  const int64_t kept = p.kept;
  alignas(64) float norms[kTileMax], limits[kTileMax];
  for (int64_t c = 0; c < kTileMax; ++c) {
    norms[c] = c < t.columns ? s.y.norms[t.column + c] : 0.0f;
    // No distance is below it in a column that does not count, nor in one whose list is not kept.
    limits[c] =
        s.symmetric && c < t.columns ? p.candidates[(t.column + c) * kept + kept - 1] : -1.0f;
  }
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t row = t.row + r, count = t.limit(r);
    float* values = p.candidates + row * kept;
    int32_t* indices = p.rows + row * kept;
    for (int64_t c = 0; c < count; c += VW) {
      const vf d =
          squared_distance(s.x.norms[row] + load(norms + c), load(t.dots + r * kTileMax + c));
      const uint32_t inside = (1u << (count - c < VW ? count - c : VW)) - 1;
      const uint32_t of_row = lane_bits(d < splat(values[kept - 1])) & inside;
      const uint32_t of_column = lane_bits(d < load(limits + c)) & inside;
      if (!(of_row | of_column)) continue;
      float lanes[VW];
      store(lanes, d);
      for (uint32_t bits = of_row; bits; bits &= bits - 1) {
        const int64_t lane = __builtin_ctz(bits);
        if (lanes[lane] < values[kept - 1])
          insert(lanes[lane], static_cast<int32_t>(t.column + c + lane), values, indices, kept);
      }
      for (uint32_t bits = of_column; bits; bits &= bits - 1) {
        const int64_t lane = __builtin_ctz(bits), column = t.column + c + lane;
        float* list = p.candidates + column * kept;
        insert(lanes[lane], static_cast<int32_t>(row), list, p.rows + column * kept, kept);
        limits[c + lane] = list[kept - 1];
      }
    }
  }
}

// Every distance in float64.
template <class T>
void search_row(const PairwiseTopkParams& p, const PairwiseSets& s, int64_t row, double* distances,
                int64_t* indices) {
  for (int64_t i = 0; i < p.k; ++i) distances[i] = kInfinity, indices[i] = -1;
  for (int64_t j = 0; j < s.y.rows; ++j) {
    if (s.symmetric && j == row) continue;
    const double worst = distances[p.k - 1];
    const double d =
        exact_squared_distance(pair_row<T>(s.x, row), pair_row<T>(s.y, j), s.depth, worst);
    if (d < worst) insert(d, j, distances, indices, p.k);
  }
}

// The candidates in float64, and a search of the row where one that was not kept could be nearer.
template <class T>
void decide_row(const PairwiseTopkParams& p, const PairwiseSets& s, int64_t row) {
  double* distances = p.distances + row * p.k;
  int64_t* indices = p.indices + row * p.k;
  for (int64_t i = 0; i < p.k; ++i) distances[i] = kInfinity, indices[i] = -1;
  const float* candidates = p.candidates + row * p.kept;
  const double scale = static_cast<double>(s.scale);
  // Whether a row whose float32 distance is at least `d` could be nearer than the k-th. The norm of
  // such a row is at most twice the norm of this one plus twice their distance.
  const auto could_be_nearer = [&](float d) {
    const double worst = distances[p.k - 1] * scale * scale;
    const double norms = 3 * static_cast<double>(s.x.norms[row]) + 2 * worst;
    const double error = 1.01 * static_cast<double>(distance_error(s.depth)) * norms +
                         static_cast<double>(kDistanceFloor);
    return worst > 0 && !(static_cast<double>(d) - error > worst);
  };
  int64_t found = 0;
  for (; found < p.kept && p.rows[row * p.kept + found] >= 0; ++found) {
    if (found >= p.k && !could_be_nearer(candidates[found])) return;
    const int64_t index = p.rows[row * p.kept + found];
    const double d = exact_squared_distance(pair_row<T>(s.x, row), pair_row<T>(s.y, index), s.depth,
                                            distances[p.k - 1]);
    if (d < distances[p.k - 1] || (d == distances[p.k - 1] && index < indices[p.k - 1]))
      insert(d, index, distances, indices, p.k);
  }
  const int64_t others = s.symmetric ? s.y.rows - 1 : s.y.rows;
  if (found == others || (found == p.kept && !could_be_nearer(candidates[p.kept - 1]))) return;
  search_row<T>(p, s, row, distances, indices);
}

}  // namespace

void PIXLEAP_KERNEL(pairwise_topk)(const PairwiseTopkParams& p) {
  const PairwiseSets s = prepare_distances(p.sets);
  for (int64_t i = 0; i < s.x.rows * p.kept; ++i) {
    p.candidates[i] = __builtin_inff();
    p.rows[i] = -1;
  }
  for_each_tile(s, [&](const Tile& t) { keep_candidates(p, s, t); });
  parallel_for(s.x.rows, 4, [&](int64_t first, int64_t last) {
    with_float_type(s.dtype, [&]<class T>() {
      for (int64_t row = first; row < last; ++row) decide_row<T>(p, s, row);
    });
  });
}

}  // namespace pixleap
