#include "core/parallel.h"
#include "ops/feature_moments/feature_moments.h"
#include "ops/feature_moments/fixed_point.inl"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int64_t kStrip = 32;  // columns that a task of the passes over the features takes

// Elements that are multiplied: float for all but float64 features.
template <class E>
struct Lanes {
  static constexpr int count = VW * 4 / static_cast<int>(sizeof(E));  // columns of a panel
  typedef E V __attribute__((vector_size(VW * 4)));
  static constexpr int panels = 3;  // of a register tile, times `rows` columns that are broadcast
  static constexpr int rows = VW == 16 ? 8 : count < 4 ? count : 4;
};
template <class T>
struct ElementOf {
  using type = float;
};
template <>
struct ElementOf<double> {
  using type = double;
};

PIXLEAP_INLINE double element(double x) { return x; }
template <class T>
PIXLEAP_INLINE float element(T x) {
  return to_float(x);
}
PIXLEAP_INLINE vd fma(vd a, vd b, vd c) {
#if defined(__AVX512F__)
  return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  vd r;
  for (int i = 0; i < VD; i += 4) {  // twice when 16 lanes are emulated on AVX2
    __m256d x, y, z;
    std::memcpy(&x, reinterpret_cast<const char*>(&a) + 8 * i, 32);
    std::memcpy(&y, reinterpret_cast<const char*>(&b) + 8 * i, 32);
    std::memcpy(&z, reinterpret_cast<const char*>(&c) + 8 * i, 32);
    z = _mm256_fmadd_pd(x, y, z);
    std::memcpy(reinterpret_cast<char*>(&r) + 8 * i, &z, 32);
  }
  return r;
#else
  return a * b + c;
#endif
}

// kStrip elements of a row as E; those past `width` are 0.
template <class T, class E>
PIXLEAP_INLINE void load_strip(const T* x, int64_t width, E* to) {
  if constexpr (sizeof(E) == 8) {
    for (int64_t c = 0; c < kStrip; ++c) to[c] = c < width ? x[c] : 0;
  } else if (width >= kStrip) {
    for (int64_t c = 0; c < kStrip; c += VW) store(to + c, load(x + c));
  } else {
    for (int64_t c = 0; c < kStrip; ++c) to[c] = c < width ? element(x[c]) : 0;
  }
}

// Sums of x and of its squares over the rows of each block.
template <class T>
void scan(const FeatureMomentsParams& p, int64_t blocks) {
  using E = typename ElementOf<T>::type;
  const int64_t strips = p.columns / kStrip;
  parallel_for(blocks * strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / strips, column = task % strips * kStrip;
      const int64_t first = part_start(p.n, blocks, block);
      const int64_t last = part_start(p.n, blocks, block + 1);
      double sum[kStrip] = {}, square[kStrip] = {};
      const T* x = static_cast<const T*>(p.features) + column;
      for (int64_t r = first; r < last; ++r) {
        E row[kStrip];
        load_strip(x + r * p.row_stride, p.d - column, row);
        for (int64_t c = 0; c < kStrip; ++c) {
          const double v = static_cast<double>(row[c]);
          sum[c] += v;
          square[c] += v * v;
        }
      }
      for (int64_t c = 0; c < kStrip; ++c) {
        p.sums[block * p.columns + column + c] = sum[c];
        p.squares[block * p.columns + column + c] = square[c];
      }
    }
  });
}

template <class T>
int64_t first_bad_row(const FeatureMomentsParams& p) {
  for (int64_t r = 0; r < p.n; ++r) {
    const T* x = static_cast<const T*>(p.features) + r * p.row_stride;
    for (int64_t c = 0; c < p.d; ++c) {
      const auto v = element(x[c]);
      if (!(v - v == 0)) return r;
    }
  }
  return -1;
}

// Whether everything is finite and fits; |sum x_i x_j| is at most the larger sum of squares.
template <class T>
bool acceptable(const FeatureMomentsParams& p, int64_t blocks) {
  for (int64_t c = 0; c < p.d; ++c) {
    double total = static_cast<double>(p.second[c * (c + 3) + 1]) * 0x1p-10;
    for (int64_t b = 0; b < blocks; ++b) total += p.squares[b * p.columns + c];
    if (total < kFixedLimit) continue;  // false for NaN
    *p.bad_row = first_bad_row<T>(p);
    *p.overflow = c;
    return false;
  }
  return true;
}

// Panels of x - shift: sub-blocks one after the other, in each the panels one after the other.
// Also the shift and the lever of each column.
template <class T>
void pack(const FeatureMomentsParams& p, int64_t block, int64_t first, int64_t rows) {
  using E = typename ElementOf<T>::type;
  constexpr int L = Lanes<E>::count;
  const int64_t subs = parts(rows, kFeatureSubBlock);
  const double n = static_cast<double>(rows);
  parallel_for(p.columns / kStrip, 1, [&](int64_t begin, int64_t end) {
    for (int64_t column = begin * kStrip; column < end * kStrip; column += kStrip) {
      double shift[kStrip], sum[kStrip] = {};
      for (int64_t c = 0; c < kStrip; ++c) {
        p.shift[column + c] = static_cast<float>(p.sums[block * p.columns + column + c] / n);
        shift[c] = static_cast<double>(p.shift[column + c]);
      }
      const T* x = static_cast<const T*>(p.features) + first * p.row_stride + column;
      for (int64_t s = 0; s < subs; ++s) {
        const int64_t start = part_start(rows, subs, s), end_row = part_start(rows, subs, s + 1);
        E* to = static_cast<E*>(p.packed) + start * p.columns + column * (end_row - start);
        for (int64_t r = start; r < end_row; ++r) {
          E row[kStrip];
          load_strip(x + r * p.row_stride, p.d - column, row);
          for (int64_t c = 0; c < kStrip; ++c) {
            // In float64, so that the mean does not depend on the rounding of the difference.
            const double v = static_cast<double>(row[c]) - shift[c];
            row[c] = static_cast<E>(v);
            sum[c] += v;
          }
          for (int64_t c = 0; c < kStrip; c += L)
            std::memcpy(to + c * (end_row - start) + (r - start) * L, row + c, sizeof(E) * L);
        }
      }
      for (int64_t c = 0; c < kStrip; ++c) {
        const double a = n * shift[c] / 2, u = sum[c] + a, b = u - a;
        const double error = (sum[c] - b) + (a - (u - b));
        const double t = u * 0x1.000001p24, high = t - (t - u);  // the upper 29 bits
        p.lever[column + c] = high;
        p.lever[p.columns + column + c] = (u - high) + error;
      }
    }
  });
}

// total += products of `Lanes::rows` columns of one panel with three panels, over `rows` rows.
template <class E>
void multiply(const E* a, const E* b, int64_t rows, double* total) {
  using V = typename Lanes<E>::V;
  constexpr int L = Lanes<E>::count, R = Lanes<E>::rows, P = Lanes<E>::panels;
  V sum[R][P] = {};
  for (int64_t r = 0; r < rows; ++r) {
    V v[P];
#pragma GCC unroll 8
    for (int k = 0; k < P; ++k) std::memcpy(&v[k], b + (k * rows + r) * L, sizeof(V));
#pragma GCC unroll 8
    for (int m = 0; m < R; ++m) {
      const V s = a[r * L + m] - V{};
#pragma GCC unroll 8
      for (int k = 0; k < P; ++k) sum[m][k] = fma(s, v[k], sum[m][k]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < R; ++m)
#pragma GCC unroll 8
    for (int k = 0; k < P; ++k) {
      double* to = total + m * kFeatureTile + k * L;
      E lanes[L];
      std::memcpy(lanes, &sum[m][k], sizeof lanes);
      for (int l = 0; l < L; ++l) to[l] += static_cast<double>(lanes[l]);
    }
}

// One tile of the triangle: centred products, then their place among the totals.
template <class E>
void tile(const FeatureMomentsParams& p, int64_t rows, int64_t i0, int64_t j0) {
  constexpr int L = Lanes<E>::count, R = Lanes<E>::rows, W = Lanes<E>::panels * L;
  alignas(64) double total[kFeatureTile * kFeatureTile] = {};
  const int64_t height = p.d - i0 < kFeatureTile ? p.d - i0 : kFeatureTile;
  const int64_t width = p.d - j0 < kFeatureTile ? p.d - j0 : kFeatureTile;
  const int64_t subs = parts(rows, kFeatureSubBlock);
  for (int64_t s = 0; s < subs; ++s) {
    const int64_t start = part_start(rows, subs, s);
    const int64_t n = part_start(rows, subs, s + 1) - start;
    const E* packed = static_cast<const E*>(p.packed) + start * p.columns;
    for (int64_t j = 0; j < width; j += W)
      for (int64_t i = 0; i < height; i += R) {
        if (i0 + i + R <= j0 + j) continue;  // above the diagonal
        multiply<E>(packed + (i0 + i) / L * L * n + (i0 + i) % L, packed + (j0 + j) * n, n,
                    total + i * kFeatureTile + j);
      }
  }
  const double *high = p.lever, *low = high + p.columns;
  for (int64_t i = i0; i < i0 + height; ++i) {
    const int64_t n = i + 1 - j0 < width ? i + 1 - j0 : width;
    const double si = static_cast<double>(p.shift[i]), hi = high[i], lo = low[i];
    add_row(n, total + (i - i0) * kFeatureTile, p.second + i * (i + 1) + 2 * j0,
            [&](int64_t j, vd products) {
              const vd s = load_double(p.shift + j0 + j);
              // A float32 times 29 bits is exact in float64.
              const Two shifted = two_sum(si * load_double(high + j0 + j), hi * s);
              const Two sum = two_sum(shifted.high, products);
              const vd rest = si * load_double(low + j0 + j) + lo * s;
              return Two{sum.high, (shifted.low + sum.low) + rest};
            });
  }
}

template <class T>
void run(const FeatureMomentsParams& p) {
  using E = typename ElementOf<T>::type;
  const int64_t blocks = parts(p.n, kFeatureBlock);
  scan<T>(p, blocks);
  if (!acceptable<T>(p, blocks)) return;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = part_start(p.n, blocks, block);
    const int64_t rows = part_start(p.n, blocks, block + 1) - first;
    pack<T>(p, block, first, rows);
    const int64_t side = p.columns / kFeatureTile;
    parallel_for(side * (side + 1) / 2, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        int64_t i = 0;
        while ((i + 1) * (i + 2) / 2 <= task) ++i;
        tile<E>(p, rows, i * kFeatureTile, (task - i * (i + 1) / 2) * kFeatureTile);
      }
    });
    // sum x = lever + n shift / 2
    const double half = static_cast<double>(rows) / 2;
    add_row(p.d, p.lever, p.first, [&](int64_t j, vd high) {
      const Two sum = two_sum(high, half * load_double(p.shift + j));
      return Two{sum.high, sum.low + load_double(p.lever + p.columns + j)};
    });
  }
}

}  // namespace

void PIXLEAP_KERNEL(feature_moments)(const FeatureMomentsParams& p) {
  if (p.dtype == DType::f64) return run<double>(p);
  with_float_type(p.dtype, [&]<class T>() { run<T>(p); });
}

}  // namespace pixleap
