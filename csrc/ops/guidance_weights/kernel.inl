#include "ops/guidance_weights/guidance_weights.h"
#include "simd/moments.h"

namespace pixleap {
namespace {

// r = cond - uncond + momentum * average, rounded to T.
template <class T>
PIXLEAP_INLINE void make_difference(const T* cond, const T* uncond, const T* average, T* r,
                                    int64_t n, float momentum) {
  for_each_vector(n, [&](int64_t i, int64_t lanes) {
    vf d = load_upto(cond + i, lanes) - load_upto(uncond + i, lanes);
    if (momentum != 0) d = fma(splat(momentum), load_upto(average + i, lanes), d);
    store_upto(r + i, d, lanes);
  });
}

template <class T>
void add_samples(const GuidanceWeightsParams& p) {
  const auto at = [](const void* base, int64_t offset) {
    return base ? static_cast<const T*>(base) + offset : nullptr;
  };
  sum_samples(p.size, p.partial, p.sums,
              [&](int64_t sample, int64_t begin, int64_t n, double* sums) {
                const T* cond = at(p.cond, sample * p.cond_stride + begin);
                const T* uncond = at(p.uncond, sample * p.uncond_stride + begin);
                if (!p.difference) return add_moments(cond, uncond, n, sums);
                const T* average = at(p.average, sample * p.average_stride + begin);
                if (uncond) {
                  T* r = static_cast<T*>(p.difference) + sample * p.difference_stride + begin;
                  make_difference(cond, uncond, average, r, n, static_cast<float>(p.momentum));
                  average = r;
                }
                add_moments(average, cond, n, sums);
              });
}

}  // namespace

void PIXLEAP_KERNEL(guidance_weights)(const GuidanceWeightsParams& p) {
  with_float_type(p.dtype, [&]<class T>() { add_samples<T>(p); });
  for (int64_t sample = 0; sample < p.size.batch; ++sample)
    guidance_rule(p, p.sums + sample * kMoments, p.sample_scale ? p.sample_scale[sample] : p.scale,
                  p.out + sample * p.count);
}

}  // namespace pixleap
