#include "core/parallel.h"
#include "ops/jacobi_update/jacobi_update.h"
#include "simd/math.h"

namespace pixleap {
namespace {

template <class T>
T* token(const JacobiOperand& o, int64_t batch, int64_t w) {
  return o.data ? static_cast<T*>(o.data) + batch * o.batch_stride + w * o.token_stride : nullptr;
}

// One token of C numbers; returns its change.
template <class T>
float update_token(const JacobiUpdateParams& p, int64_t batch, int64_t w) {
  T* x = token<T>(p.x, batch, w);
  const T *z = token<T>(p.z, batch, w), *a = token<T>(p.a, batch, w);
  const T *b = token<T>(p.b, batch, w), *previous = token<T>(p.previous, batch, w);
  const T *ua = token<T>(p.uncond_a, batch, w), *ub = token<T>(p.uncond_b, batch, w);
  const vf g = splat(p.guidance ? p.guidance[w * p.guidance_stride] : 0.f);
  vf most = vf{};
  vi bad = vi{}, lane;
  for (int i = 0; i < VW; ++i) lane[i] = i;
  for_each_vector(p.channels, [&](int64_t c, int64_t n) {
    vf log_scale = load_upto(a + c, n), shift = load_upto(b + c, n);
    if (ua) log_scale = fma(g, log_scale - load_upto(ua + c, n), log_scale);
    if (ub) shift = fma(g, shift - load_upto(ub + c, n), shift);
    const vf old = load_upto(previous + c, n);
    const vf value = fma(load_upto(z + c, n), vexp(log_scale), shift);
    // As stored: a rounded output must compare equal to itself at the next sweep.
    T rounded[VW];
    store(rounded, value);
    const vf now = load(rounded);
    store_upto(x + c, now, n);
    const vf inf = splat(__builtin_inff());
    const vi inside = lane < splat_int(static_cast<int32_t>(n));
    bad |= inside & (~(vabs(now) < inf) | ~(vabs(old) < inf));
    most = vmax(most, select(inside, vabs(now - old), vf{}));
  });
  int32_t any[VW];
  std::memcpy(any, &bad, sizeof any);
  for (int i = 0; i < VW; ++i)
    if (any[i]) return __builtin_inff();
  return reduce_max(most);
}

}  // namespace

void PIXLEAP_KERNEL(jacobi_update)(const JacobiUpdateParams& p) {
  const int64_t grain = 16384 / (p.channels + 16) + 1;
  parallel_for(p.batch * p.tokens, grain, [&](int64_t first, int64_t last) {
    with_float_type(p.dtype, [&]<class T>() {
      for (int64_t i = first; i < last; ++i) {
        const int64_t batch = i / p.tokens, w = i % p.tokens;
        p.change[batch * p.change_batch_stride + w * p.change_token_stride] =
            update_token<T>(p, batch, w);
      }
    });
  });
}

}  // namespace pixleap
