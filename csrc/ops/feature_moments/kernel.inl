#include <cmath>

#include "core/parallel.h"
#include "ops/feature_moments/feature_moments.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

typedef double vd __attribute__((vector_size(VW * 4)));
constexpr int64_t kSubBlock = 128;  // rows that lanes add before float64 totals do: two panels of
                                    // this length stay in the first cache

PIXLEAP_INLINE vd fma(vd a, vd b, vd c) {
#if defined(__AVX512F__)
  return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  vd r;
  for (int i = 0; i < VW / 2; i += 4) {
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

// Element and vector type of the products, and the shape of a tile.
template <class E>
struct Tile {
  using Element = E;
  typedef E V __attribute__((vector_size(VW * 4)));
  static constexpr int lanes = VW * 4 / static_cast<int>(sizeof(E));
  static constexpr int panel = 3 * lanes;
  static constexpr int rows = VW == 16 ? 8 : (panel % 4 == 0 ? 4 : 2);
};

PIXLEAP_INLINE double to_double(double x) { return x; }
template <class T>
PIXLEAP_INLINE double to_double(T x) {
  return static_cast<double>(to_float(x));
}

// Largest |x| of a row; NaN where there is a NaN.
template <class T>
double largest_of(const T* x, int64_t n) {
  vf most = vf{};
  for_each_vector(n, [&](int64_t i, int64_t lanes) {
    const vf v = vabs(load_upto(x + i, lanes));
    most = select((v > most) | (v != v), v, most);
  });
  double result = 0;
  for (int i = 0; i < VW; ++i) {
    const double v = static_cast<double>(most[i]);
    if (v > result || v != v) result = v;
  }
  return result;
}
double largest_of(const double* x, int64_t n) {
  double most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double v = x[i] < 0 ? -x[i] : x[i];
    if (v > most || v != v) most = v;
  }
  return most;
}

// Integer part of v 2^74; |v| < 2^52.
PIXLEAP_INLINE __int128 fixed_point(double v) {
  const int64_t high = static_cast<int64_t>(v * 0x1p11);
  const double rest = v - static_cast<double>(high) * 0x1p-11;
  const int64_t low = static_cast<int64_t>(rest * 0x1p74);
  return static_cast<__int128>(high) * (static_cast<__int128>(1) << 63) + low;
}
PIXLEAP_INLINE void add_fixed(int64_t* cell, double high, double low) {
  unsigned __int128 sum = static_cast<uint64_t>(cell[0]);
  sum |= static_cast<unsigned __int128>(static_cast<uint64_t>(cell[1])) << 64;
  sum += static_cast<unsigned __int128>(fixed_point(high) + fixed_point(low));
  cell[0] = static_cast<int64_t>(static_cast<uint64_t>(sum));
  cell[1] = static_cast<int64_t>(static_cast<uint64_t>(sum >> 64));
}

struct Double2 {  // high + low, not yet rounded
  double high, low;
};
PIXLEAP_INLINE Double2 product(double a, double b) {
  const double p = a * b;
  return {p, __builtin_fma(a, b, -p)};
}
PIXLEAP_INLINE void add(Double2& s, Double2 x) {
  const double t = s.high + x.high, z = t - s.high;
  s.low += ((s.high - (t - z)) + (x.high - z)) + x.low;
  s.high = t;
}

// Shift, packed rows and sums of the columns of one panel.
template <class T, class E>
void pack_panel(const FeatureMomentsParams& p, int64_t first_row, int64_t rows, int64_t panel) {
  constexpr int P = Tile<E>::panel;
  const int64_t column = panel * P;
  const int64_t width = p.d - column < P ? p.d - column : P;
  const T* x = static_cast<const T*>(p.features) + first_row * p.row_stride + column;
  E* to = reinterpret_cast<E*>(p.packed) + panel * P * rows;
  double sum[P] = {};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; ++c) sum[c] += to_double(x[r * p.row_stride + c]);
  float shift[P] = {};
  for (int64_t c = 0; c < width; ++c) {
    shift[c] = static_cast<float>(sum[c] / static_cast<double>(rows));
    p.shift[column + c] = shift[c];
    sum[c] = 0;
  }
  for (int64_t r = 0; r < rows; ++r, to += P) {
    for (int64_t c = 0; c < width; ++c) {
      const double v = to_double(x[r * p.row_stride + c]) - static_cast<double>(shift[c]);
      to[c] = static_cast<E>(v);
      sum[c] += v;
    }
    for (int64_t c = width; c < P; ++c) to[c] = 0;
  }
  for (int64_t c = 0; c < width; ++c) p.centred[column + c] = sum[c];
}

// total (panel x panel) += sum over rows of a_i b_j.
template <class E>
void multiply_panels(const E* a, const E* b, int64_t rows, double* total) {
  using V = typename Tile<E>::V;
  constexpr int P = Tile<E>::panel, R = Tile<E>::rows, L = Tile<E>::lanes;
  for (int64_t start = 0; start < rows; start += kSubBlock) {
    const int64_t n = rows - start < kSubBlock ? rows - start : kSubBlock;
    for (int i = 0; i < P; i += R) {
      V sum[R][3] = {};
      const E *x = a + start * P + i, *y = b + start * P;
      for (int64_t r = 0; r < n; ++r, x += P, y += P) {
        V v[3];
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k) std::memcpy(&v[k], y + k * L, sizeof v[k]);
#pragma GCC unroll 8
        for (int m = 0; m < R; ++m) {
          const V s = x[m] - V{};
#pragma GCC unroll 3
          for (int k = 0; k < 3; ++k) sum[m][k] = fma(s, v[k], sum[m][k]);
        }
      }
      E sums[R * P];
      std::memcpy(sums, sum, sizeof sum);
      double* to = total + i * P;
      for (int k = 0; k < R * P; ++k) to[k] += static_cast<double>(sums[k]);
    }
  }
}

// From sums about the shifts to sums about zero, without losing digits, into the integers.
template <class E>
void add_tile(const FeatureMomentsParams& p, int64_t rows, int64_t pi, int64_t pj,
              const double* total) {
  constexpr int P = Tile<E>::panel;
  const double n = static_cast<double>(rows);
  for (int64_t i = pi * P; i < p.d && i < (pi + 1) * P; ++i) {
    const double si = static_cast<double>(p.shift[i]);
    int64_t* row = p.second + i * (i + 1);
    for (int64_t j = pj * P; j <= i && j < (pj + 1) * P; ++j) {
      const double sj = static_cast<double>(p.shift[j]);
      Double2 sum = product(n, si * sj);  // si sj is exact
      add(sum, product(si, p.centred[j]));
      add(sum, product(sj, p.centred[i]));
      add(sum, {total[(i - pi * P) * P + (j - pj * P)], 0});
      add_fixed(row + 2 * j, sum.high, sum.low);
    }
  }
}

template <class T, class E>
void add_features(const FeatureMomentsParams& p) {
  constexpr int P = Tile<E>::panel;
  parallel_for(p.n, 16, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      p.largest[r] = largest_of(static_cast<const T*>(p.features) + r * p.row_stride, p.d);
  });
  double most = 0, diagonal = 0;
  for (int64_t r = 0; r < p.n; ++r) {
    if (!(p.largest[r] <= 0x1.fffffffffffffp1023)) {
      *p.bad_row = r;
      return;
    }
    most = p.largest[r] > most ? p.largest[r] : most;
  }
  for (int64_t i = 0; i < p.d; ++i) {
    const double high = static_cast<double>(p.second[i * (i + 1) + 2 * i + 1]);
    diagonal = high > diagonal ? high : diagonal;
  }
  if (!(diagonal * 0x1p-10 + static_cast<double>(p.n) * most * most < kFixedLimit)) {
    *p.overflow = true;
    return;
  }
  const int64_t panels = (p.d + P - 1) / P;
  const E* packed = reinterpret_cast<const E*>(p.packed);
  for (int64_t start = 0; start < p.n; start += kFeatureBlock) {
    const int64_t rows = p.n - start < kFeatureBlock ? p.n - start : kFeatureBlock;
    parallel_for(panels, 1, [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) pack_panel<T, E>(p, start, rows, k);
    });
    // The longest rows of tiles first, so that threads end together.
    parallel_for(panels, 1, [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) {
        const int64_t i = panels - 1 - k;
        for (int64_t j = 0; j <= i; ++j) {
          double total[P * P] = {};
          multiply_panels(packed + i * P * rows, packed + j * P * rows, rows, total);
          add_tile<E>(p, rows, i, j, total);
        }
      }
    });
    const double n = static_cast<double>(rows);
    for (int64_t i = 0; i < p.d; ++i) {
      Double2 sum = product(n, static_cast<double>(p.shift[i]));
      add(sum, {p.centred[i], 0});
      add_fixed(p.first + 2 * i, sum.high, sum.low);
    }
  }
}

}  // namespace

void PIXLEAP_KERNEL(feature_moments)(const FeatureMomentsParams& p) {
  if (p.dtype == DType::f64) return add_features<double, double>(p);
  with_float_type(p.dtype, [&]<class T>() { add_features<T, float>(p); });
}

}  // namespace pixleap
