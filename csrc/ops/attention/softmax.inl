// Scores of a block of keys to weights, with the running maximum and sum of each query.
#include "ops/attention/tiles.inl"

namespace pixleap {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr double kLog2E = 1.4426950408889634;
constexpr float kLn2 = 0.693147181f;

// x to 2^x in place, for x <= 1 (larger ones give 2) or NaN, to 1e-7; 1 at 0, and 0 below -126.5.
// Scores in units of ln 2 spare the product and the two-step reduction of exp. Step by step for all
// U: one after the other, the chains of dependent operations would fill the scheduler.
template <int U>
PIXLEAP_INLINE void exp2_upto_one(vf (&x)[U]) {
  const vf magic = splat(12582912.f + 127.f);  // 1.5 * 2^23: adding it rounds; the exponent's bias
  vf power[U], y[U];
  for (int u = 0; u < U; ++u) x[u] = vmin(vmax(x[u], splat(-127.f)), splat(1.f));
  for (int u = 0; u < U; ++u) power[u] = x[u] + magic;
  for (int u = 0; u < U; ++u) x[u] = x[u] - (power[u] - magic);
  for (int u = 0; u < U; ++u) y[u] = fma(splat(1.5594677551e-4f), x[u], splat(1.3406643905e-3f));
  for (const float c :
       {9.6176929749e-3f, 5.5503105510e-2f, 2.4022652783e-1f, 6.9314721497e-1f, 1.f})
    for (int u = 0; u < U; ++u) y[u] = fma(y[u], x[u], splat(c));
  for (int u = 0; u < U; ++u) x[u] = y[u] * bit_cast_to<vf>(bit_cast_to<vu>(power[u]) << 23);
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

// Scores of one query to units of ln 2, and the mask added.
template <class T>
void mask_row(const AttentionParams& p, int64_t b, int64_t h, int64_t query, int64_t first_key,
              int64_t count, float unit, float* scores) {
  const auto add = [&]<class M>(const M* data) {
    const M* row = data + b * p.mask_strides[0] + h * p.mask_strides[1] +
                   query * p.mask_strides[2] + first_key * p.mask_strides[3];
    for_each_vector(count, [&](int64_t j, int64_t lanes) {
      const vf mask = load_strided(row, p.mask_strides[3], j, lanes);
      store(scores + j,
            fma(mask, splat(static_cast<float>(kLog2E)), load(scores + j) * splat(unit)));
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

// Running state of VW queries in units of ln 2, and how many keys of the current block each of them
// sees.
struct Softmax {
  vf max, sum, decay;
  int64_t count[VW];
};

// The maximum of a row's scores, lane by lane; lanes past `count` get no weight.
PIXLEAP_INLINE vf top_of_row(float* scores, int64_t count) {
  const int64_t whole = count / VW * VW;
  vf even = splat(-kInfinity), odd = even;
  int64_t j = 0;
  for (; j + 2 * VW <= whole; j += 2 * VW) {
    even = vmax(even, load(scores + j));
    odd = vmax(odd, load(scores + j + VW));
  }
  if (j < whole) even = vmax(even, load(scores + j));
  if (whole < count) {
    const vi valid = lane_index() < splat_int(static_cast<int32_t>(count - whole));
    const vf x = select(valid, load(scores + whole), splat(-kInfinity));
    store(scores + whole, x);
    odd = vmax(odd, x);
  }
  return vmax(even, odd);
}

// Up to VW rows, so that the reductions over lanes and the decay are vectors too. Scores count
// `unit` times ln 2: in the fma with the maximum that product is not rounded. The largest score is
// above its own rounded product by that rounding, so a weight may be above 1. A NaN never becomes
// the maximum but stays a NaN weight, and so reaches sum and output.
void soften_rows(Softmax& s, int64_t rows, float unit, float* scores, int64_t ld) {
  vf lanes[VW];
  for (int r = 0; r < VW; ++r)
    lanes[r] =
        r < rows && s.count[r] > 0 ? top_of_row(scores + r * ld, s.count[r]) : splat(-kInfinity);
  const vf max = vmax(s.max, reduce_max_rows(lanes) * splat(unit));
  const vf shift = select(max == splat(-kInfinity), vf{}, max);
  vf decay[] = {s.max - shift};
  exp2_upto_one(decay);
  s.decay = select(max == s.max, splat(1.f), decay[0]);
  for (int r = 0; r < VW; ++r) {
    vf sum{};
    if (r < rows) {
      const vf top = splat(-shift[r]);
      const auto weigh = [&]<int U>(int64_t j) {
        vf x[U];
        for (int u = 0; u < U; ++u)
          x[u] = fma(load(scores + r * ld + j + u * VW), splat(unit), top);
        exp2_upto_one(x);
        for (int u = 0; u < U; ++u) store(scores + r * ld + j + u * VW, x[u]), sum += x[u];
      };
      int64_t j = 0;
      for (; j + 4 * VW <= s.count[r]; j += 4 * VW) weigh.template operator()<4>(j);
      for (; j < s.count[r]; j += VW) weigh.template operator()<1>(j);
    }
    lanes[r] = sum;
  }
  s.sum = fma(s.sum, s.decay, reduce_add_rows(lanes));
  s.max = max;
}

}  // namespace
}  // namespace pixleap
