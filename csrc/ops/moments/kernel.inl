#include "core/parallel.h"
#include "ops/moments/moments.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int64_t kBlock = 512;  // float32 lanes add this many elements, then float64 takes over

template <class T>
void add_block(const T* a, const T* b, int64_t n, double* sums) {
  vf s[5] = {};
  vf most = vf{};
  for_each_vector(n, [&](int64_t i, int64_t lanes) {
    const vf x = load_upto(a + i, lanes), y = load_upto(b + i, lanes);
    s[0] += x;
    s[1] += y;
    s[2] = fma(x, x, s[2]);
    s[3] = fma(y, y, s[3]);
    s[4] = fma(x, y, s[4]);
    const vf d = vabs(x - y);
    most = select((d > most) | (d != d), d, most);  // NaN stays
  });
  for (int k = 0; k < 5; ++k) {
    float lanes[VW];
    store(lanes, s[k]);
    double sum = 0;
    for (const float v : lanes) sum += static_cast<double>(v);
    sums[k] += sum;
  }
  float lanes[VW];
  store(lanes, most);
  for (const float v : lanes) {
    const double d = static_cast<double>(v);
    if (d > sums[5] || d != d) sums[5] = d;
  }
}

}  // namespace

void PIXLEAP_KERNEL(moments)(const MomentsParams& p) {
  parallel_for(p.batch, 1, [&](int64_t first, int64_t last) {
    with_float_type(p.dtype, [&]<class T>() {
      for (int64_t sample = first; sample < last; ++sample) {
        const T* a = static_cast<const T*>(p.a) + sample * p.a_stride;
        const T* b = static_cast<const T*>(p.b) + sample * p.b_stride;
        double sums[kMoments] = {};
        for (int64_t i = 0; i < p.length; i += kBlock) {
          const int64_t n = p.length - i < kBlock ? p.length - i : kBlock;
          add_block(a + i, b + i, n, sums);
        }
        for (int k = 0; k < kMoments; ++k) p.out[sample * kMoments + k] = sums[k];
      }
    });
  });
}

}  // namespace pixleap
