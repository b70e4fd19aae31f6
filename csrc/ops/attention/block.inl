// One block of queries of one head, which `attention` and `attention_varlen` are made of.
#include "ops/attention/attention.h"
#include "simd/math.h"
#include "simd/transpose.h"

namespace pixleap {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr int64_t kTileFloats = 8192;   // of the K, V and P tiles
constexpr int64_t kQueryFloats = 4096;  // of the Q and O tiles
constexpr int64_t kMaxQueries = 64;     // in a block
constexpr int64_t kTransposeFrom = 6;   // queries, from which transposing K pays
constexpr int kRows = 4;                // queries in a register tile

// Keys of a block, for a padded head dimension: the K and V tiles stay near the first cache level.
constexpr int64_t key_block(int64_t dim) { return dim <= 64 ? 96 : dim <= 128 ? 48 : 32; }
constexpr int64_t round_up(int64_t n) { return (n + VW - 1) / VW * VW; }

struct Scratch {                        // on the stack of a task
  alignas(64) float q[kQueryFloats];    // (queries, dim), times scale
  alignas(64) float out[kQueryFloats];  // (queries, dim), before the division by `sum`
  alignas(64) float k[kTileFloats];     // (dim, keys) transposed, or (keys, dim)
  alignas(64) float v[kTileFloats];     // (keys, dim)
  alignas(64) float p[kTileFloats];     // (queries, keys)
  float max[kMaxQueries], sum[kMaxQueries], decay[kMaxQueries];
  int64_t seen[kMaxQueries];   // keys that a query sees
  int64_t count[kMaxQueries];  // those of the current block
};

// Rows as float with a padded dimension; pad lanes are zero.
template <class T>
void convert_rows(const T* in, int64_t stride, int64_t rows, int64_t dim, float scale, float* out) {
  const int64_t padded = round_up(dim);
  for (int64_t r = 0; r < rows; ++r)
    for_each_vector(dim, [&](int64_t d, int64_t lanes) {
      store(out + r * padded + d, load_upto(in + r * stride + d, lanes) * scale);
    });
}

// kt[d][j] = k[j][d] for j < count, zero up to the next multiple of VW, which is kt's stride.
template <class T>
void transpose_keys(const T* k, int64_t stride, int64_t count, int64_t dim, float* kt) {
  const int64_t ld = round_up(count);
  for (int64_t j = 0; j < count; j += VW)
    for_each_vector(dim, [&](int64_t d, int64_t lanes) {
      vf rows[VW];
      for (int64_t i = 0; i < VW; ++i)
        rows[i] = j + i < count ? load_upto(k + (j + i) * stride + d, lanes) : vf{};
      transpose(rows);
      for (int64_t i = 0; i < lanes; ++i) store(kt + (d + i) * ld + j, rows[i]);
    });
}

// Scores of R queries with N vectors of keys.
template <int R, int N>
PIXLEAP_INLINE void score_tile(const float* q, int64_t q_stride, const float* kt, int64_t ld,
                               int64_t dim, float* p) {
  vf sum[R][N] = {};
  for (int64_t d = 0; d < dim; ++d) {
    vf keys[N];
    for (int n = 0; n < N; ++n) keys[n] = load(kt + d * ld + n * VW);
    for (int r = 0; r < R; ++r) {
      const vf query = splat(q[r * q_stride + d]);
      for (int n = 0; n < N; ++n) sum[r][n] = fma(query, keys[n], sum[r][n]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store(p + r * ld + n * VW, sum[r][n]);
}

template <int R>
void score_rows(const float* q, int64_t q_stride, const float* kt, int64_t ld, int64_t dim,
                float* p) {
  int64_t left = ld / VW;
  while (left > 0) {
    const int64_t n = left == 4 ? 2 : left < 3 ? left : 3;
    if (n == 3)
      score_tile<R, 3>(q, q_stride, kt, ld, dim, p);
    else if (n == 2)
      score_tile<R, 2>(q, q_stride, kt, ld, dim, p);
    else
      score_tile<R, 1>(q, q_stride, kt, ld, dim, p);
    kt += n * VW, p += n * VW, left -= n;
  }
}

// Calls f.template operator()<R>(row) for groups of kRows rows, then for the rest.
template <class F>
void for_row_groups(int64_t rows, F&& f) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) f.template operator()<kRows>(r);
  if (rows - r == 3) f.template operator()<3>(r);
  if (rows - r == 2) f.template operator()<2>(r);
  if (rows - r == 1) f.template operator()<1>(r);
}

// Scores by dot products with lanes over the padded dimension: no transpose, for few queries.
void score_dots(const float* q, int64_t queries, const float* k, int64_t stride, int64_t count,
                int64_t padded, float* p) {
  const int64_t ld = round_up(count);
  for (int64_t j = 0; j < count; j += VW) {
    const float* rows[VW];
    for (int64_t i = 0; i < VW; ++i) rows[i] = k + (j + i < count ? j + i : j) * stride;
    for (int64_t r = 0; r < queries; ++r) {
      vf sums[VW] = {};
      for (int64_t d = 0; d < padded; d += VW) {
        const vf query = load(q + r * padded + d);
        for (int i = 0; i < VW; ++i) sums[i] = fma(query, load(rows[i] + d), sums[i]);
      }
      store(p + r * ld + j, reduce_add_rows(sums));
    }
  }
}

// exp(x) for x <= 0 or NaN; 0 below about -87.7, where the exponent field runs out.
PIXLEAP_INLINE vf exp_nonpositive(vf x) {
  const vf clamped = vmax(x, splat(-88.f));
  const vf magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const vf shifted = fma(clamped, splat(1.44269504f), magic);
  const vf n = shifted - magic;
  vf r = fma(n, splat(-0.693359375f), clamped);
  r = fma(n, splat(2.12194440e-4f), r);
  vf y = splat(1.9875691500e-4f);
  y = fma(y, r, splat(1.3981999507e-3f));
  y = fma(y, r, splat(8.3334519073e-3f));
  y = fma(y, r, splat(4.1665795894e-2f));
  y = fma(y, r, splat(1.6666665459e-1f));
  y = fma(y, r, splat(5.0000001201e-1f));
  y = fma(y, r * r, r) + 1.f;
  const vi exponent = bit_cast_to<vi>(shifted) - bit_cast_to<vi>(magic) + 127;
  return y * bit_cast_to<vf>(exponent << 23);
}

// One row of a broadcast mask from key j on: any element stride.
template <class T>
PIXLEAP_INLINE vf load_strided(const T* row, int64_t stride, int64_t j, int64_t lanes) {
  if (stride == 1) return load_upto(row + j, lanes);
  if (stride == 0) return splat(to_float(*row));
  float buffer[VW] = {};
  for (int64_t i = 0; i < lanes; ++i) buffer[i] = to_float(row[(j + i) * stride]);
  return load(buffer);
}

// Adds the mask to the scores of one query; lanes past `count` get no weight.
template <class T>
void mask_row(const AttentionParams& p, int64_t b, int64_t h, int64_t query, int64_t first_key,
              int64_t count, float* scores) {
  const auto add = [&]<class M>(const M* data) {
    const M* row = data + b * p.mask_strides[0] + h * p.mask_strides[1] +
                   query * p.mask_strides[2] + first_key * p.mask_strides[3];
    for_each_vector(count, [&](int64_t j, int64_t lanes) {
      store(scores + j, load(scores + j) + load_strided(row, p.mask_strides[3], j, lanes));
    });
  };
  if (p.mask_dtype == DType::f32)
    add(static_cast<const float*>(p.mask));
  else
    add(static_cast<const T*>(p.mask));
}

PIXLEAP_INLINE vi lane_index() {
  vi v;
  for (int i = 0; i < VW; ++i) v[i] = i;
  return v;
}

// Scores to weights in place, with the running maximum and sum of the row. A NaN never becomes
// the maximum but stays a NaN weight, and so reaches sum and output.
void soften_row(Scratch& s, int64_t row, float* scores, bool first) {
  const int64_t count = s.count[row];
  if (count <= 0) {
    s.decay[row] = 1.f;
    return;
  }
  const vi valid = lane_index() < splat_int(static_cast<int32_t>(count % VW));
  const int64_t whole = count / VW * VW;
  vf top = splat(first ? -kInfinity : s.max[row]);
  for (int64_t j = 0; j < whole; j += VW) top = vmax(top, load(scores + j));
  if (whole < count) {
    const vf x = select(valid, load(scores + whole), splat(-kInfinity));
    store(scores + whole, x);
    top = vmax(top, x);
  }
  const float max = reduce_max(top);
  const vf shift = splat(max == -kInfinity ? 0.f : max);
  vf sum{};
  for (int64_t j = 0; j < count; j += VW) {
    const vf weight = exp_nonpositive(load(scores + j) - shift);
    store(scores + j, weight);
    sum += weight;
  }
  float total = reduce_add(sum);
  if (!first) {
    s.decay[row] = max == s.max[row] ? 1.f : exp_nonpositive(splat(s.max[row]) - shift)[0];
    total += s.sum[row] * s.decay[row];
  }
  s.max[row] = max;
  s.sum[row] = total;
}

// out = out * decay + p v for R queries and C vectors of the dimension.
template <int R, int C>
PIXLEAP_INLINE void value_tile(const float* p, int64_t ld, const float* v, int64_t stride,
                               int64_t count, const float* decay, bool first, float* out,
                               int64_t out_stride) {
  vf sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      sum[r][c] = first ? vf{} : load(out + r * out_stride + c * VW) * splat(decay[r]);
  for (int64_t j = 0; j < count; ++j) {
    vf value[C];
    for (int c = 0; c < C; ++c) value[c] = load(v + j * stride + c * VW);
    for (int r = 0; r < R; ++r) {
      const vf weight = splat(p[r * ld + j]);
      for (int c = 0; c < C; ++c) sum[r][c] = fma(weight, value[c], sum[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store(out + r * out_stride + c * VW, sum[r][c]);
}

template <int R>
void value_rows(const float* p, int64_t ld, const float* v, int64_t stride, int64_t count,
                const float* decay, bool first, float* out, int64_t padded) {
  constexpr int kColumns = R == 1 ? 8 : R == 2 ? 4 : VW == 16 ? 4 : 2;
  int64_t d = 0;
  for (; d + kColumns * VW <= padded; d += kColumns * VW)
    value_tile<R, kColumns>(p, ld, v + d, stride, count, decay, first, out + d, padded);
  if constexpr (kColumns >= 8)
    for (; d + 4 * VW <= padded; d += 4 * VW)
      value_tile<R, 4>(p, ld, v + d, stride, count, decay, first, out + d, padded);
  for (; d < padded; d += VW)
    value_tile<R, 1>(p, ld, v + d, stride, count, decay, first, out + d, padded);
}

// Keys that a query sees, before any mask array.
int64_t seen_by(const AttentionParams& p, int64_t b, int64_t query) {
  int64_t n = p.causal ? p.keys - p.queries + query + 1 : p.keys;
  if (p.visible) {
    const int64_t limit = p.visible[b * p.visible_strides[0] + query * p.visible_strides[1]];
    n = limit < n ? limit : n;
  }
  return n < 0 ? 0 : n;
}

template <class T>
void finish_row(const Scratch& s, int64_t row, int64_t dim, T* out) {
  const float sum = s.sum[row];
  const float* from = s.out + row * round_up(dim);
  const vf factor = splat(1.f / sum);
  for_each_vector(dim, [&](int64_t d, int64_t lanes) {
    store_upto(out + d, sum == 0 ? vf{} : load(from + d) * factor, lanes);
  });
}

template <class T>
void attend_block(const AttentionParams& p, int64_t b, int64_t h, int64_t first_query,
                  int64_t queries, Scratch& s) {
  const int64_t padded = round_up(p.dim), g = h / (p.heads / p.kv_heads);
  const bool in_place = sizeof(T) == 4 && padded == p.dim;  // no conversion, no padding
  const T* q = static_cast<const T*>(p.q) + b * p.q_strides[0] + h * p.q_strides[1] +
               first_query * p.q_strides[2];
  const T* k = static_cast<const T*>(p.k) + b * p.k_strides[0] + g * p.k_strides[1];
  const T* v = static_cast<const T*>(p.v) + b * p.v_strides[0] + g * p.v_strides[1];
  convert_rows(q, p.q_strides[2], queries, p.dim, p.scale, s.q);
  int64_t keys = 0;
  for (int64_t r = 0; r < queries; ++r) {
    s.seen[r] = seen_by(p, b, first_query + r);
    keys = s.seen[r] > keys ? s.seen[r] : keys;
    s.max[r] = -kInfinity, s.sum[r] = 0;
  }

  const int64_t step = key_block(padded);
  for (int64_t j = 0; j < keys; j += step, k += step * p.k_strides[2], v += step * p.v_strides[2]) {
    const int64_t count = keys - j < step ? keys - j : step, ld = round_up(count);
    const bool first = j == 0;
    if (queries >= kTransposeFrom) {
      transpose_keys(k, p.k_strides[2], count, p.dim, s.k);
      for_row_groups(queries, [&]<int R>(int64_t r) {
        score_rows<R>(s.q + r * padded, padded, s.k, ld, p.dim, s.p + r * ld);
      });
    } else if (in_place) {
      score_dots(s.q, queries, reinterpret_cast<const float*>(k), p.k_strides[2], count, padded,
                 s.p);
    } else {
      convert_rows(k, p.k_strides[2], count, p.dim, 1.f, s.k);
      score_dots(s.q, queries, s.k, padded, count, padded, s.p);
    }
    for (int64_t r = 0; r < queries; ++r) {
      s.count[r] = s.seen[r] - j < count ? s.seen[r] - j : count;
      if (p.mask) mask_row<T>(p, b, h, first_query + r, j, s.count[r], s.p + r * ld);
      soften_row(s, r, s.p + r * ld, first);
    }
    const float* values = s.v;
    int64_t stride = padded;
    if (in_place)
      values = reinterpret_cast<const float*>(v), stride = p.v_strides[2];
    else
      convert_rows(v, p.v_strides[2], count, p.dim, 1.f, s.v);
    for_row_groups(queries, [&]<int R>(int64_t r) {
      // Together up to the fewest keys seen, then each row alone: hidden values are never touched,
      // be they NaN, and the order of the sum is the same in any grouping.
      int64_t common = count;
      for (int i = 0; i < R; ++i) common = s.count[r + i] < common ? s.count[r + i] : common;
      common = common < 0 ? 0 : common;
      value_rows<R>(s.p + r * ld, ld, values, stride, common, s.decay + r, first,
                    s.out + r * padded, padded);
      const float keep = 1.f;
      for (int i = 0; i < R; ++i)
        if (s.count[r + i] > common)
          value_rows<1>(s.p + (r + i) * ld + common, ld, values + common * stride, stride,
                        s.count[r + i] - common, &keep, false, s.out + (r + i) * padded, padded);
    });
  }

  T* out = static_cast<T*>(p.out) + b * p.out_strides[0] + h * p.out_strides[1] +
           first_query * p.out_strides[2];
  for (int64_t r = 0; r < queries; ++r) {
    finish_row(s, r, p.dim, out + r * p.out_strides[2]);
    if (p.lse)
      p.lse[b * p.lse_strides[0] + h * p.lse_strides[1] + (first_query + r) * p.lse_strides[2]] =
          s.sum[r] == 0 ? -kInfinity : s.max[r] + vlog(splat(s.sum[r]))[0];
  }
}

}  // namespace
}  // namespace pixleap
