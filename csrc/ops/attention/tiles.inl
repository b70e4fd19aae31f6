// Register tiles of attention: scores of queries with keys, and weights times values.
#include "ops/attention/attention.h"
#include "simd/math.h"
#include "simd/transpose.h"

namespace pixleap {
namespace {

// Queries by vectors in a register tile: the accumulators an ISA has registers for.
constexpr int kTileRows = VW == 16 ? 8 : 6;
constexpr int kScoreVectors = VW == 16 ? 3 : 2;

constexpr int64_t round_up(int64_t n) { return (n + VW - 1) / VW * VW; }

// Floats between copied rows of values: an odd number of cache lines, so that the columns that a
// register tile walks down spread over all sets of the first level.
constexpr int64_t value_stride(int64_t dim) { return (dim + 15) / 16 / 2 * 32 + 16; }

// Rows of q, k, v or out: every `stride` elements, or those that `tokens` lists; int8 ones count
// in units of `scale`.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  const int64_t* tokens = nullptr;
  const float* scale = nullptr;
  int64_t scale_stride = 0;

  int64_t at(int64_t j) const { return tokens ? tokens[j] : j; }
  T* operator[](int64_t j) const { return data + at(j) * stride; }
  float factor(int64_t j) const { return scale ? scale[at(j) * scale_stride] : 1.f; }
  Rows from(int64_t j) const {
    if (tokens) return {data, stride, tokens + j, scale, scale_stride};
    return {data + j * stride, stride, nullptr, scale ? scale + j * scale_stride : nullptr,
            scale_stride};
  }
};

// Rows times `scale` as float with a padded dimension, `stride` apart; pad lanes are zero.
template <class T>
void convert_rows(const Rows<const T>& in, int64_t rows, int64_t dim, float scale, float* out,
                  int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = in[r];
    const vf factor = splat(scale * in.factor(r));
    for_each_vector(dim, [&](int64_t d, int64_t lanes) {
      store(out + r * stride + d, load_upto(row + d, lanes) * factor);
    });
  }
}

// kt[d][j] = k[j][d] for j < count, the last key again up to the next multiple of VW, which is kt's
// stride: what those columns score is never used.
template <class T>
void transpose_keys(const Rows<const T>& k, int64_t count, int64_t dim, float* kt) {
  const int64_t ld = round_up(count);
  for (int64_t j = 0; j < count; j += VW) {
    const T* key[VW];
    vf factor[VW];
    for (int i = 0; i < VW; ++i) {
      const int64_t of = j + i < count ? j + i : count - 1;
      key[i] = k[of];
      if constexpr (sizeof(T) == 1) factor[i] = splat(k.factor(of));
    }
    for_each_vector(dim, [&](int64_t d, int64_t lanes) {
      vf rows[VW];
      for (int i = 0; i < VW; ++i) {
        rows[i] = load_upto(key[i] + d, lanes);
        if constexpr (sizeof(T) == 1) rows[i] *= factor[i];
      }
      transpose(rows);
      if (lanes == VW)
        for (int i = 0; i < VW; ++i) store(kt + (d + i) * ld + j, rows[i]);
      else
        for (int64_t i = 0; i < lanes; ++i) store(kt + (d + i) * ld + j, rows[i]);
    });
  }
}

template <int R, class F>
PIXLEAP_INLINE void with_rows(int64_t rows, int64_t r, F&& f) {
  if constexpr (R > 0) {
    if (rows == R)
      f.template operator()<R>(r);
    else
      with_rows<R - 1>(rows, r, f);
  }
}

// Calls f.template operator()<R>(row) for groups of N rows. One or two rows at the end would wait
// for their own sums: they share what is left with the group before.
template <int N, class F>
PIXLEAP_INLINE void for_row_groups(int64_t rows, F&& f) {
  int64_t r = 0;
  while (rows - r >= N && (rows - r - N == 0 || rows - r - N > 2)) {
    f.template operator()<N>(r);
    r += N;
  }
  if (rows - r > N) {
    const int64_t half = (rows - r + 1) / 2;
    with_rows<N>(half, r, f);
    r += half;
  }
  with_rows<N>(rows - r, r, f);
}

// Scores of R queries with N vectors of keys. Tiles are calls of their own: inlined into their
// loops, what GCC keeps in registers across them makes it spill accumulators. Without the pragmas
// it also keeps a copy of the sums in memory; four steps at a time leave room for the other
// instructions beside two fma per cycle, and let the end of the loop be predicted.
template <int R, int N>
[[gnu::noinline]] void score_tile(const float* q, int64_t q_stride, const float* kt, int64_t ld,
                                  int64_t dim, float* p) {
  vf sum[R][N] = {};
#pragma GCC unroll 4
  for (int64_t d = 0; d < dim; ++d) {
    vf keys[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) keys[n] = load(kt + d * ld + n * VW);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vf query = splat(q[r * q_stride + d]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[r][n] = fma(query, keys[n], sum[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store(p + r * ld + n * VW, sum[r][n]);
}

// Tile by tile of keys, which stays in the first cache level for all queries.
void score_rows(const float* q, int64_t queries, int64_t q_stride, const float* kt, int64_t ld,
                int64_t dim, float* p) {
  const auto tiles = [&]<int N>(int64_t j) {
    for_row_groups<kTileRows>(queries, [&]<int R>(int64_t r) {
      score_tile<R, N>(q + r * q_stride, q_stride, kt + j, ld, dim, p + r * ld + j);
    });
  };
  int64_t j = 0;
  for (; j + kScoreVectors * VW <= ld; j += kScoreVectors * VW)
    tiles.template operator()<kScoreVectors>(j);
  for (; j < ld; j += VW) tiles.template operator()<1>(j);
}

// Scores by dot products with lanes over the dimension: no transpose, for few queries. The
// dimension is a multiple of VW; q is `padded` apart.
template <class T>
void score_dots(const float* q, int64_t queries, const Rows<const T>& k, int64_t count,
                int64_t padded, float* p) {
  const int64_t ld = round_up(count);
  for (int64_t j = 0; j < count; j += VW) {
    const T* rows[VW];
    vf factor = splat(1.f);
    for (int64_t i = 0; i < VW; ++i) {
      const int64_t key = j + i < count ? j + i : j;
      rows[i] = k[key];
      if constexpr (sizeof(T) == 1) factor[i] = k.factor(key);
    }
    for (int64_t r = 0; r < queries; ++r) {
      vf sums[VW] = {};
      for (int64_t d = 0; d < padded; d += VW) {
        const vf query = load(q + r * padded + d);
        for (int i = 0; i < VW; ++i) sums[i] = fma(query, load(rows[i] + d), sums[i]);
      }
      vf scores = reduce_add_rows(sums);
      if constexpr (sizeof(T) == 1) scores *= factor;
      store(p + r * ld + j, scores);
    }
  }
}

// out = out * decay + (start + p v) for R queries and C vectors of the dimension; without `start`
// the sum begins at zero, and the `first` one is stored. Blocks of keys are summed alone and then
// added: the error of a sum grows with its length.
template <int R, int C, class T>
[[gnu::noinline]] void value_tile(const float* p, int64_t ld, const T* v, int64_t stride,
                                  int64_t count, const float* start, const float* decay, bool first,
                                  float* out, int64_t out_stride) {
  vf sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum[r][c] = start ? load(start + r * out_stride + c * VW) : vf{};
#pragma GCC unroll 4
  for (int64_t j = 0; j < count; ++j) {
    vf value[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) value[c] = load(v + j * stride + c * VW);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vf weight = splat(p[r * ld + j]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum[r][c] = fma(weight, value[c], sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      float* to = out + r * out_stride + c * VW;
      store(to, first ? sum[r][c] : fma(load(to), splat(decay[r]), sum[r][c]));
    }
}

// Calls f.template operator()<C>(d) for groups of N vectors of the dimension from d on, N / 2, ....
template <int N, class F>
PIXLEAP_INLINE void for_columns(int64_t padded, F&& f, int64_t d = 0) {
  for (; d + N * VW <= padded; d += N * VW) f.template operator()<N>(d);
  if constexpr (N > 1) for_columns<N / 2>(padded, f, d);
}

}  // namespace
}  // namespace pixleap
