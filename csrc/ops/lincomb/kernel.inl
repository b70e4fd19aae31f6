#include <type_traits>

#include "core/parallel.h"
#include "ops/lincomb/lincomb.h"
#include "simd/normal.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

// Elements of a task; multiples of every vector width and of 4.
constexpr int64_t kGrain = 1 << 15, kNoisyGrain = 1 << 13;
constexpr int64_t kDrawn = 512;  // normals drawn at once, which stay in L1
constexpr int64_t kDoubles = 256;

struct Row {
  const char* in[kLincombMaxInputs];
  const char* weights[kLincombMaxInputs];  // null: none
  bool weight_moves[kLincombMaxInputs];    // false: one number for the row
  char* out[kLincombMaxOutputs];
};
struct Numbers {  // of one sample
  int64_t sample = -1;
  double c[kLincombMaxOutputs][kLincombMaxInputs], noise[kLincombMaxOutputs];
  float c32[kLincombMaxOutputs][kLincombMaxInputs], noise32[kLincombMaxOutputs];
};

struct bf16_pairs {};  // bfloat16 whose vectors hold elements of even and of odd position in turn

// x[u] = elements [e + u * VW, ...) of an array; T is void where the dtype is known at run time
// only. `lanes` below VW go with U = 1.
template <class T, int U>
PIXLEAP_INLINE void load_vectors(const void* p, DType dtype, int64_t e, int64_t lanes, vf (&x)[U]) {
  if constexpr (__is_same(T, void)) {
    switch (dtype) {
      case DType::f32:
        return load_vectors<float>(p, dtype, e, lanes, x);
      case DType::bf16:
        return load_vectors<bf16_t>(p, dtype, e, lanes, x);
      default:
        return load_vectors<f16_t>(p, dtype, e, lanes, x);
    }
  } else if constexpr (__is_same(T, bf16_pairs)) {
#pragma GCC unroll 4
    for (int u = 0; u < U; u += 2)
      load_pairs(static_cast<const bf16_t*>(p) + e + u * VW, x[u], x[u + 1]);
  } else {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) x[u] = load_upto(static_cast<const T*>(p) + e + u * VW, lanes);
  }
}
template <class T, int U>
PIXLEAP_INLINE void store_vectors(void* p, DType dtype, int64_t e, int64_t lanes,
                                  const vf (&x)[U]) {
  if constexpr (__is_same(T, void)) {
    switch (dtype) {
      case DType::f32:
        return store_vectors<float>(p, dtype, e, lanes, x);
      case DType::bf16:
        return store_vectors<bf16_t>(p, dtype, e, lanes, x);
      default:
        return store_vectors<f16_t>(p, dtype, e, lanes, x);
    }
  } else if constexpr (__is_same(T, bf16_pairs)) {
    store_pairs(static_cast<bf16_t*>(p) + e, x);
  } else {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) store_upto(static_cast<T*>(p) + e + u * VW, x[u], lanes);
  }
}

// U vectors of all M outputs, input by input. `noise` holds the normals of these elements. Plain:
// no weights, no noise.
template <class T, int M, int U, bool Plain>
PIXLEAP_INLINE void combine_vectors(const LincombParams& p, const Row& row, const Numbers& numbers,
                                    const float* noise, int64_t e, int64_t lanes) {
  vf sum[M][U];
#pragma GCC unroll 4
  for (int j = 0; j < M; ++j)
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) sum[j][u] = splat(-0.f);  // keeps the sign of a zero that is copied
  const auto add = [&](const vf(&x)[U], const float* c, int64_t stride)
                       __attribute__((always_inline)) {
#pragma GCC unroll 4
                         for (int j = 0; j < M; ++j) {
                           const vf factor = splat(c[j * stride]);
#pragma GCC unroll 4
                           for (int u = 0; u < U; ++u) sum[j][u] = fma(factor, x[u], sum[j][u]);
                         }
                       };
  vf x[U];
  for (int i = 0; i < p.n_in; ++i) {
    load_vectors<T>(row.in[i], p.in[i].dtype, e, lanes, x);
    if (!Plain && row.weights[i]) {
      vf w[U];
      if (row.weight_moves[i]) {
        load_vectors<void>(row.weights[i], p.weights[i].dtype, e, lanes, w);
      } else {
        vf one[1];
        load_vectors<void>(row.weights[i], p.weights[i].dtype, 0, 1, one);
        for (int u = 0; u < U; ++u) w[u] = splat(one[0][0]);
      }
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) x[u] *= w[u];
    }
    add(x, &numbers.c32[0][i], kLincombMaxInputs);
  }
  if (!Plain && noise) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) x[u] = load(noise + u * VW);
    add(x, numbers.noise32, 1);
  }
  if (p.has_clamp) {
    const vf high = splat(static_cast<float>(p.clamp));
#pragma GCC unroll 4
    for (int j = 0; j < M; ++j)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) sum[j][u] = vmin(vmax(sum[j][u], -high), high);
  }
#pragma GCC unroll 4
  for (int j = 0; j < M; ++j) store_vectors<T>(row.out[j], p.out[j].dtype, e, lanes, sum[j]);
}

// Elements [begin, end); noise is that of element `begin`.
template <class T, int M, bool Plain>
PIXLEAP_INLINE void combine_span(const LincombParams& p, const Row& row, const Numbers& numbers,
                                 const float* noise, int64_t begin, int64_t end) {
  constexpr int U = M <= 2 ? 4 : 2;  // so that the sums stay in registers
  using Full = std::conditional_t<Plain&& __is_same(T, bf16_t), bf16_pairs, T>;
  const auto at = [&](int64_t e) { return noise ? noise + (e - begin) : nullptr; };
  int64_t e = begin;
  for (; e + U * VW <= end; e += U * VW)
    combine_vectors<Full, M, U, Plain>(p, row, numbers, at(e), e, VW);
  for (; e + VW <= end; e += VW) combine_vectors<T, M, 1, Plain>(p, row, numbers, at(e), e, VW);
  if (e < end) combine_vectors<T, M, 1, Plain>(p, row, numbers, at(e), e, end - e);
}

// Elements [begin, end) of one row; `index` is the position of the row's start in the noise stream.
template <class T, int M>
void combine_row(const LincombParams& p, const Row& row, const Numbers& numbers, int64_t begin,
                 int64_t end, uint64_t index) {
  bool plain = !p.has_noise;
  for (int i = 0; i < p.n_in; ++i) plain = plain && !row.weights[i];
  if (plain) return combine_span<T, M, true>(p, row, numbers, nullptr, begin, end);
  if (!p.has_noise) return combine_span<T, M, false>(p, row, numbers, nullptr, begin, end);
  float drawn[kDrawn + kNormalSlack];
  for (int64_t stop; begin < end; begin = stop) {
    stop = end - begin > kDrawn ? begin + kDrawn : end;
    const float* noise =
        draw_normals(p.seed, p.offset, index + static_cast<uint64_t>(begin), stop - begin, drawn);
    combine_span<T, M, false>(p, row, numbers, noise, begin, stop);
  }
}

void load_doubles(const void* p, DType dtype, int64_t e, int64_t n, double* x) {
  if (dtype == DType::f64) {
    std::memcpy(x, static_cast<const double*>(p) + e, static_cast<size_t>(n) * sizeof(double));
    return;
  }
  for_each_vector(n, [&](int64_t i, int64_t lanes) {
    vf v[1];
    load_vectors<void>(p, dtype, e + i, lanes, v);
    for (int64_t k = 0; k < lanes; ++k) x[i + k] = static_cast<double>(v[0][k]);
  });
}
void store_doubles(void* p, DType dtype, int64_t e, int64_t n, const double* x) {
  if (dtype == DType::f64) {
    std::memcpy(static_cast<double*>(p) + e, x, static_cast<size_t>(n) * sizeof(double));
    return;
  }
  for_each_vector(n, [&](int64_t i, int64_t lanes) {
    vf v[1] = {};
    for (int64_t k = 0; k < lanes; ++k) v[0][k] = static_cast<float>(x[i + k]);
    store_vectors<void>(p, dtype, e + i, lanes, v);
  });
}

void combine_row_doubles(const LincombParams& p, const Row& row, const Numbers& numbers,
                         int64_t begin, int64_t end, uint64_t index) {
  double sums[kLincombMaxOutputs][kDoubles], x[kDoubles], w[kDoubles];
  float drawn[kDoubles + kNormalSlack];
  for (; begin < end; begin += kDoubles) {
    const int64_t n = end - begin < kDoubles ? end - begin : kDoubles;
    for (int j = 0; j < p.n_out; ++j)
      for (int64_t k = 0; k < n; ++k) sums[j][k] = -0.0;
    for (int i = 0; i < p.n_in; ++i) {
      load_doubles(row.in[i], p.in[i].dtype, begin, n, x);
      if (row.weights[i] && row.weight_moves[i]) {
        load_doubles(row.weights[i], p.weights[i].dtype, begin, n, w);
        for (int64_t k = 0; k < n; ++k) x[k] *= w[k];
      } else if (row.weights[i]) {
        load_doubles(row.weights[i], p.weights[i].dtype, 0, 1, w);
        for (int64_t k = 0; k < n; ++k) x[k] *= w[0];
      }
      for (int j = 0; j < p.n_out; ++j)
        for (int64_t k = 0; k < n; ++k) sums[j][k] += numbers.c[j][i] * x[k];
    }
    if (p.has_noise) {
      const float* noise =
          draw_normals(p.seed, p.offset, index + static_cast<uint64_t>(begin), n, drawn);
      for (int j = 0; j < p.n_out; ++j)
        for (int64_t k = 0; k < n; ++k)
          sums[j][k] += numbers.noise[j] * static_cast<double>(noise[k]);
    }
    for (int j = 0; j < p.n_out; ++j) {
      double* s = sums[j];
      if (p.has_clamp)
        for (int64_t k = 0; k < n; ++k)
          s[k] = s[k] < -p.clamp ? -p.clamp : s[k] > p.clamp ? p.clamp : s[k];
      store_doubles(row.out[j], p.out[j].dtype, begin, n, s);
    }
  }
}

PIXLEAP_INLINE void read_numbers(const LincombParams& p, int64_t sample, Numbers& n) {
  n.sample = sample;
  for (int j = 0; j < p.n_out; ++j) {
    for (int i = 0; i < p.n_in; ++i)
      n.c32[j][i] = static_cast<float>(n.c[j][i] = lincomb_coefficient(p, sample, j, i));
    n.noise32[j] = static_cast<float>(n.noise[j] = lincomb_noise_scale(p, sample, j));
  }
}

PIXLEAP_INLINE Row find_row(const LincombParams& p, int64_t row) {
  const auto place = [&](const LincombOperand& o) {
    return static_cast<char*>(o.data) + row_offset(p.rows, o.strides, row) * dtype_size(o.dtype);
  };
  Row r;
  for (int j = 0; j < p.n_out; ++j) r.out[j] = place(p.out[j]);
  for (int i = 0; i < p.n_in; ++i) {
    r.in[i] = place(p.in[i]);
    const bool weighted = p.weights[i].data != nullptr;
    r.weights[i] = weighted ? place(p.weights[i]) : nullptr;
    r.weight_moves[i] = weighted && p.weights[i].strides[p.rows.outer_dims] != 0;
  }
  return r;
}

using RowFunction = void (*)(const LincombParams&, const Row&, const Numbers&, int64_t, int64_t,
                             uint64_t);

template <class T>
RowFunction row_function(int outputs) {
  constexpr RowFunction functions[] = {combine_row<T, 1>, combine_row<T, 2>, combine_row<T, 3>,
                                       combine_row<T, 4>};
  return functions[outputs - 1];
}
RowFunction row_function(const LincombParams& p) {
  if (p.f64_sums) return combine_row_doubles;
  switch (p.dtype) {
    case DType::f32:
      return row_function<float>(p.n_out);
    case DType::bf16:
      return row_function<bf16_t>(p.n_out);
    case DType::f16:
      return row_function<f16_t>(p.n_out);
    default:
      return row_function<void>(p.n_out);
  }
}

}  // namespace

void PIXLEAP_KERNEL(lincomb)(const LincombParams& p) {
  const Rows& rows = p.rows;
  const int64_t grain = p.has_noise ? kNoisyGrain : kGrain;
  const int64_t blocks = (rows.length + grain - 1) / grain;  // per row
  const int64_t rows_per_task = rows.length >= grain ? 1 : grain / (rows.length + 1) + 1;
  const RowFunction combine = row_function(p);
  parallel_for(rows.count * blocks, rows_per_task, [&](int64_t first, int64_t last) {
    Numbers numbers;
    for (int64_t task = first; task < last; ++task) {
      const int64_t row = task / blocks, begin = task % blocks * grain;
      const int64_t end = begin + grain < rows.length ? begin + grain : rows.length;
      const int64_t sample = lincomb_sample(p, row);
      if (sample != numbers.sample) read_numbers(p, sample, numbers);
      combine(p, find_row(p, row), numbers, begin, end,
              p.first_element + static_cast<uint64_t>(row) * static_cast<uint64_t>(rows.length));
    }
  });
}

}  // namespace pixleap
