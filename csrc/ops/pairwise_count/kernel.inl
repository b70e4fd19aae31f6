#include "ops/pairwise_count/pairwise_count.h"
#include "simd/compress.h"
#include "simd/pairwise.h"

namespace pixleap {
namespace {

// Squared radii in the units of the products. Nothing is nearer than 0, and NaN holds nothing:
// -inf leaves no doubt about either.
void scale_radii(const double* radii, int64_t n, double scale, float* to) {
  for (int64_t i = 0; i < n; ++i) {
    const double r = radii[i] * scale * scale;
    to[i] = radii[i] > 0 ? static_cast<float>(r) : -__builtin_inff();
  }
}

template <class T>
void count_tile(const PairwiseCountParams& p, const PairwiseSets& s, const Tile& t) {
  const vf relative = splat(distance_error(s.depth)), floor = splat(kDistanceFloor);
  alignas(64) float norms[kTileMax], radii[kTileMax];
  alignas(64) int32_t in_columns[kTileMax] = {}, around_columns[kTileMax] = {};
  for (int64_t c = 0; c < kTileMax; ++c) {
    norms[c] = c < t.columns ? s.y.norms[t.column + c] : 0.0f;
    radii[c] = c < t.columns ? p.y_scaled[t.column + c] : -__builtin_inff();
  }
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t row = t.row + r;
    const vf x_radius = splat(p.x_scaled[row]), x_norm = splat(s.x.norms[row]);
    int64_t in_row = 0, around_row = 0;
    for (int64_t c = 0; c < t.columns; c += VW) {
      const vf norm = x_norm + load(norms + c), y_radius = load(radii + c);
      const vf d = squared_distance(norm, load(t.dots + r * kTileMax + c));
      const vf error = fma(relative, norm, floor), high = d + error, low = d - error;
      const uint32_t inside = (1u << (t.columns - c < VW ? t.columns - c : VW)) - 1;
      const vi in_x = high < x_radius, in_y = high < y_radius;
      uint32_t x_bits = lane_bits(in_x) & inside, y_bits = lane_bits(in_y) & inside;
      // NaN (of overflow) is in doubt, too.
      const uint32_t x_doubt = ~lane_bits(low > x_radius) & ~x_bits & inside;
      const uint32_t y_doubt = ~lane_bits(low > y_radius) & ~y_bits & inside;
      for (uint32_t bits = x_doubt | y_doubt; bits; bits &= bits - 1) {
        const int64_t lane = __builtin_ctz(bits), column = t.column + c + lane;
        const uint32_t bit = bits & (~bits + 1);
        const double rx = x_doubt & bit ? p.x_radii[row] : -1.0;
        const double ry = y_doubt & bit ? p.y_radii[column] : -1.0;
        const double exact = exact_squared_distance(pair_row<T>(s.x, row), pair_row<T>(s.y, column),
                                                    s.depth, rx > ry ? rx : ry);
        if (exact < rx) x_bits |= bit;
        if (exact < ry) y_bits |= bit;
      }
      if (!(x_bits | y_bits)) continue;
      in_row += __builtin_popcount(x_bits);
      around_row += __builtin_popcount(y_bits);
      for (uint32_t bits = x_bits; bits; bits &= bits - 1)
        ++around_columns[c + __builtin_ctz(bits)];
      for (uint32_t bits = y_bits; bits; bits &= bits - 1) ++in_columns[c + __builtin_ctz(bits)];
    }
    p.x_counts[2 * row] += in_row;
    p.x_counts[2 * row + 1] += around_row;
  }
  for (int64_t c = 0; c < t.columns; ++c) {
    p.y_counts[2 * (t.column + c)] += in_columns[c];
    p.y_counts[2 * (t.column + c) + 1] += around_columns[c];
  }
}

}  // namespace

void PIXLEAP_KERNEL(pairwise_count)(const PairwiseCountParams& p) {
  const PairwiseSets s = prepare_distances(p.sets);
  const double scale = static_cast<double>(s.scale);
  scale_radii(p.x_radii, s.x.rows, scale, p.x_scaled);
  scale_radii(p.y_radii, s.y.rows, scale, p.y_scaled);
  for (int64_t i = 0; i < 2 * s.x.rows; ++i) p.x_counts[i] = 0;
  for (int64_t i = 0; i < 2 * s.y.rows; ++i) p.y_counts[i] = 0;
  with_float_type(s.dtype, [&]<class T>() {
    for_each_tile(s, [&](const Tile& t) { count_tile<T>(p, s, t); });
  });
}

}  // namespace pixleap
