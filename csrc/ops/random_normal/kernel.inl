#include "core/parallel.h"
#include "ops/random_normal/random_normal.h"
#include "simd/normal.h"

namespace pixleap {

void PIXLEAP_KERNEL(random_normal)(const RandomNormalParams& p) {
  constexpr int64_t grain = 1 << 13;
  parallel_for(p.count, grain, [&](int64_t begin, int64_t end) {
    with_float_type(p.dtype, [&]<class T>() {
      for_each_vector(end - begin, [&](int64_t i, int64_t n) {
        const uint64_t element = p.first_element + static_cast<uint64_t>(begin + i);
        store_upto(static_cast<T*>(p.out) + begin + i, load_normal(p.seed, p.offset, element), n);
      });
    });
  });
}

}  // namespace pixleap
