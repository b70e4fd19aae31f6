#include "core/parallel.h"
#include "ops/lincomb/lincomb.h"
#include "simd/normal.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements; a multiple of every vector width and of 4

// Elements [begin, end) of one row; `index` is the position of the row's start in the noise stream.
template <class T, int N>
void combine_row(const LincombParams& p, const T* const* in, T* const* out, int64_t begin,
                 int64_t end, uint64_t index) {
  const int n = N ? N : p.n_in;  // unrolled for the common counts
  vf c[kLincombMaxOutputs][kLincombMaxInputs];
  for (int j = 0; j < p.n_out; ++j)
    for (int i = 0; i < n; ++i) c[j][i] = splat(static_cast<float>(p.coefficients[j][i]));
  const vf high = splat(static_cast<float>(p.clamp));
  for_each_vector(end - begin, [&](int64_t step, int64_t lanes) {
    const int64_t e = begin + step;
    vf x[kLincombMaxInputs];
    for (int i = 0; i < n; ++i) x[i] = load_upto(in[i] + e, lanes);
    const vf noise =
        p.has_noise ? load_normal(p.seed, p.offset, index + static_cast<uint64_t>(e)) : vf{};
    for (int j = 0; j < p.n_out; ++j) {
      vf sum = c[j][0] * x[0];
      for (int i = 1; i < n; ++i) sum = fma(c[j][i], x[i], sum);
      if (p.has_noise) sum = fma(splat(static_cast<float>(p.noise_scale[j])), noise, sum);
      if (p.has_clamp) sum = vmin(vmax(sum, -high), high);
      store_upto(out[j] + e, sum, lanes);
    }
  });
}

template <>
void combine_row<double, 0>(const LincombParams& p, const double* const* in, double* const* out,
                            int64_t begin, int64_t end, uint64_t index) {
  for (int64_t e = begin; e < end; ++e) {
    double x[kLincombMaxInputs];
    for (int i = 0; i < p.n_in; ++i) x[i] = in[i][e];
    const double noise =
        p.has_noise
            ? static_cast<double>(philox_normal(p.seed, p.offset, index + static_cast<uint64_t>(e)))
            : 0.0;
    for (int j = 0; j < p.n_out; ++j) {
      double sum = p.noise_scale[j] * noise;
      for (int i = 0; i < p.n_in; ++i) sum += p.coefficients[j][i] * x[i];
      if (p.has_clamp) sum = sum < -p.clamp ? -p.clamp : sum > p.clamp ? p.clamp : sum;
      out[j][e] = sum;
    }
  }
}

template <class T, int N>
void combine(const LincombParams& p) {
  const Rows& rows = p.rows;
  const int64_t blocks = (rows.length + kGrain - 1) / kGrain;  // per row
  const int64_t rows_per_task = rows.length >= kGrain ? 1 : kGrain / (rows.length + 1) + 1;
  parallel_for(rows.count * blocks, rows_per_task, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t row = task / blocks, begin = task % blocks * kGrain;
      const T* in[kLincombMaxInputs];
      T* out[kLincombMaxOutputs];
      for (int i = 0; i < p.n_in; ++i)
        in[i] = static_cast<const T*>(p.in[i].data) + row_offset(rows, p.in[i].strides, row);
      for (int j = 0; j < p.n_out; ++j)
        out[j] = static_cast<T*>(p.out[j].data) + row_offset(rows, p.out[j].strides, row);
      const int64_t end = begin + kGrain < rows.length ? begin + kGrain : rows.length;
      combine_row<T, N>(p, in, out, begin, end, static_cast<uint64_t>(row * rows.length));
    }
  });
}

}  // namespace

void PIXLEAP_KERNEL(lincomb)(const LincombParams& p) {
  if (p.dtype == DType::f64) return combine<double, 0>(p);
  with_float_type(p.dtype, [&]<class T>() {
    switch (p.n_in) {
      case 1:
        return combine<T, 1>(p);
      case 2:
        return combine<T, 2>(p);
      case 3:
        return combine<T, 3>(p);
      case 4:
        return combine<T, 4>(p);
      default:
        return combine<T, 0>(p);
    }
  });
}

}  // namespace pixleap
