#include "ops/pairwise_kernel_sum/pairwise_kernel_sum.h"
#include "simd/math.h"
#include "simd/pairwise.h"

namespace pixleap {
namespace {

constexpr int64_t kFlush = 64;  // rows that float32 column sums take, then float64 adds them up

PIXLEAP_INLINE double sum_lanes(vf v) {
  float lanes[VW];
  store(lanes, v);
  double sum = 0;
  for (const float x : lanes) sum += static_cast<double>(x);
  return sum;
}

// Adds f(r, c, dots) of the tile's pairs to the sums of its rows and, for one set with itself, to
// those of its columns.
template <class F>
void add_tile(const PairwiseSets& s, const Tile& t, double* out, const F& f) {
  alignas(64) float columns[kTileMax] = {};
  const auto flush = [&] {
    for (int64_t c = 0; c < t.columns; ++c) {
      out[t.column + c] += static_cast<double>(columns[c]);
      columns[c] = 0;
    }
  };
  for (int64_t r = 0; r < t.rows; ++r) {
    const float* dots = t.dots + r * kTileMax;
    const int64_t limit = t.limit(r);
    vf row{};
    for (int64_t c = 0; c < limit; c += VW) {
      vf value = f(r, c, load(dots + c));
      if (limit - c < VW) {
        float lanes[VW];
        store(lanes, value);
        value = load_n(lanes, limit - c);  // what lies past the end becomes 0
      }
      row += value;
      if (s.symmetric) store(columns + c, load(columns + c) + value);
    }
    out[t.row + r] += sum_lanes(row);
    if (s.symmetric && r % kFlush == kFlush - 1) flush();
  }
  if (s.symmetric) flush();
}

template <int Degree>
void polynomial(const PairwiseKernelSumParams& p) {
  const vf gamma = splat(static_cast<float>(p.gamma)), coef0 = splat(static_cast<float>(p.coef0));
  for_each_tile(p.sets, [&](const Tile& t) {
    add_tile(p.sets, t, p.out, [&](int64_t, int64_t, vf dots) {
      const vf base = fma(gamma, dots, coef0);
      vf value = base;
      for (int64_t i = 1; i < (Degree ? Degree : p.degree); ++i) value = value * base;
      return value;
    });
  });
}

// Wide: sums of k - 1, since nearly all of k is 1, and the rounding with it.
template <bool Wide>
void gaussian(const PairwiseKernelSumParams& p, const PairwiseSets& s, float scaled_gamma) {
  const vf minus_gamma = splat(-scaled_gamma);
  for_each_tile(s, [&](const Tile& t) {
    alignas(64) float norms[kTileMax];
    for (int64_t c = 0; c < kTileMax; ++c)
      norms[c] = c < t.columns ? s.y.norms[t.column + c] : 0.0f;
    add_tile(s, t, p.out, [&](int64_t r, int64_t c, vf dots) {
      const vf d = squared_distance(s.x.norms[t.row + r] + load(norms + c), dots);
      return Wide ? vexpm1(minus_gamma * d) : vexp(minus_gamma * d);
    });
  });
  if (!Wide) return;
  const auto count = static_cast<double>(s.symmetric ? s.x.rows - 1 : s.y.rows);
  for (int64_t i = 0; i < s.x.rows; ++i) p.out[i] += count;
}

void gaussian(const PairwiseKernelSumParams& p) {
  const PairwiseSets s = prepare_distances(p.sets);
  const double scale = static_cast<double>(s.scale);
  const double scaled = p.gamma / (scale * scale), limit = static_cast<double>(__FLT_MAX__);
  const auto gamma = static_cast<float>(scaled < limit ? scaled : limit);
  double norms = 0;
  for (int64_t i = 0; i < s.x.rows; ++i) norms += static_cast<double>(s.x.norms[i]);
  // Twice the mean squared norm is about the mean squared distance.
  const bool wide = 2 * static_cast<double>(gamma) * norms < static_cast<double>(s.x.rows);
  wide ? gaussian<true>(p, s, gamma) : gaussian<false>(p, s, gamma);
}

}  // namespace

void PIXLEAP_KERNEL(pairwise_kernel_sum)(const PairwiseKernelSumParams& p) {
  for (int64_t i = 0; i < p.sets.x.rows; ++i) p.out[i] = 0;
  if (p.kernel == PairKernel::gaussian) return gaussian(p);
  p.degree == 3 ? polynomial<3>(p) : polynomial<0>(p);
}

}  // namespace pixleap
