#include "core/parallel.h"
#include "ops/random_normal/random_normal.h"
#include "simd/normal.h"

namespace pixleap {

void PIXLEAP_KERNEL(random_normal)(const RandomNormalParams& p) {
  constexpr int64_t grain = 1 << 13, kDrawn = 512;
  parallel_for(p.count, grain, [&](int64_t begin, int64_t end) {
    with_float_type(p.dtype, [&]<class T>() {
      float drawn[kDrawn + kNormalSlack];
      for (; begin < end; begin += kDrawn) {
        const int64_t count = end - begin < kDrawn ? end - begin : kDrawn;
        const uint64_t element = p.first_element + static_cast<uint64_t>(begin);
        const float* z = draw_normals(p.seed, p.offset, element, count, drawn);
        T* out = static_cast<T*>(p.out) + begin;
        for_each_vector(count,
                        [&](int64_t i, int64_t lanes) { store_upto(out + i, load(z + i), lanes); });
      }
    });
  });
}

}  // namespace pixleap
