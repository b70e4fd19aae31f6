#include <cmath>

#include "core/parallel.h"
#include "ops/layer_norm/layer_norm.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements per task
constexpr int64_t kChannels = 2048;  // of the modulation that are prepared at a time
constexpr int kSums = 4;             // independent sums, to hide the latency of additions

struct Statistics {
  float mean, correction, scale;  // (x - mean - correction) * scale; see statistics_of
};

// Calls f(x, i, n, s) over a row with s cycling through the sums, so that the order is fixed.
template <class T, class F>
PIXLEAP_INLINE void for_each_sum(const T* x, int64_t count, F&& f) {
  int64_t i = 0;
  for (; i + kSums * VW <= count; i += kSums * VW)
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) f(load(x + i + s * VW), static_cast<int64_t>(VW), s);
  for (; i < count; i += VW) {
    const int64_t n = count - i < VW ? count - i : VW;
    f(load_upto(x + i, n), n, 0);
  }
}

PIXLEAP_INLINE float total(const vf (&sums)[kSums]) {
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Two passes. The second one also sums the deviations: where |mean| is far above the deviation, the
// rounded mean is off, and their mean corrects it.
template <class T>
PIXLEAP_INLINE Statistics statistics_of(const T* x, int64_t count, float eps) {
  const float inverse = 1.f / static_cast<float>(count);
  vf sums[kSums] = {};
  for_each_sum(x, count, [&](vf v, int64_t, int s) { sums[s] = sums[s] + v; });
  const float mean = total(sums) * inverse;
  vf deviations[kSums] = {}, squares[kSums] = {};
  for_each_sum(x, count, [&](vf v, int64_t n, int s) {
    vf d = v - mean;
    if (n < VW)
      for (int64_t i = n; i < VW; ++i) d[i] = 0.f;
    deviations[s] = deviations[s] + d;
    squares[s] = fma(d, d, squares[s]);
  });
  const float correction = total(deviations) * inverse;
  const float variance = total(squares) * inverse - correction * correction;
  return {mean, correction, 1.f / std::sqrt((variance > 0.f ? variance : 0.f * variance) + eps)};
}

// Elements [begin, begin + count) of an operand for one batch entry, or a constant.
void prepare(const LayerNormOperand& o, int64_t batch, int64_t begin, int64_t count, float absent,
             float* to) {
  if (!o.data) {
    for_each_vector(count, [&](int64_t i, int64_t) { store(to + i, splat(absent)); });
    return;
  }
  with_float_type(o.dtype, [&]<class T>() {
    const T* from = static_cast<const T*>(o.data) + batch * o.stride + begin;
    for_each_vector(count, [&](int64_t i, int64_t n) { store(to + i, load_upto(from + i, n)); });
  });
}

// The affine map and the modulation as one product and one sum.
struct Modulation {
  alignas(64) float factor[kChannels], offset[kChannels];

  void set(const LayerNormParams& p, int64_t batch, int64_t begin, int64_t count) {
    alignas(64) float scale[kChannels], shift[kChannels];
    prepare(p.weight, batch, begin, count, 1.f, factor);
    prepare(p.bias, batch, begin, count, 0.f, offset);
    if (!p.scale.data && !p.shift.data) return;
    prepare(p.scale, batch, begin, count, 0.f, scale);
    prepare(p.shift, batch, begin, count, 0.f, shift);
    for_each_vector(count, [&](int64_t i, int64_t) {
      const vf s = load(scale + i) + 1.f;
      store(factor + i, load(factor + i) * s);
      store(offset + i, fma(load(offset + i), s, load(shift + i)));
    });
  }
};

template <class T, class U>
void normalize(const LayerNormParams& p) {
  const int64_t c = p.channels;
  const int64_t chunks = (c + kChannels - 1) / kChannels;
  parallel_for(p.batch * p.length, kGrain / c + 1, [&](int64_t first, int64_t last) {
    Modulation modulation;
    int64_t prepared = -1;
    for (int64_t row = first; row < last; ++row) {
      const int64_t b = row / p.length, l = row % p.length;
      const T* x = static_cast<const T*>(p.x) + b * p.x_strides[0] + l * p.x_strides[1];
      U* out = static_cast<U*>(p.out) + b * p.out_strides[0] + l * p.out_strides[1];
      const Statistics s = statistics_of(x, c, p.eps);
      for (int64_t begin = 0; begin < c; begin += kChannels) {
        const int64_t count = c - begin < kChannels ? c - begin : kChannels;
        if (prepared != b || chunks > 1) modulation.set(p, b, begin, count);
        prepared = b;
        for_each_vector(count, [&](int64_t i, int64_t n) {
          const vf v = (load_upto(x + begin + i, n) - s.mean - s.correction) * s.scale;
          store_upto(out + begin + i,
                     fma(v, load(modulation.factor + i), load(modulation.offset + i)), n);
        });
      }
    }
  });
}

}  // namespace

void PIXLEAP_KERNEL(layer_norm)(const LayerNormParams& p) {
  with_float_type(p.x_dtype, [&]<class T>() {
    with_float_type(p.out_dtype, [&]<class U>() { normalize<T, U>(p); });
  });
}

}  // namespace pixleap
