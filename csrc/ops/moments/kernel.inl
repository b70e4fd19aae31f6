#include "ops/moments/moments.h"
#include "simd/moments.h"

namespace pixleap {
namespace {

template <class T>
void add_block(const T* a, const T* b, int64_t n, double* sums) {
  add_moments(a, b, n, sums);
}

template <>
void add_block<double>(const double* a, const double* b, int64_t n, double* sums) {
  typedef double vd __attribute__((vector_size(VW * 4)));
  constexpr int64_t width = VW / 2;
  vd s[kMoments] = {};
  for (int64_t i = 0; i < n; i += width) {
    vd x{}, y{};
    const auto bytes = static_cast<size_t>(n - i < width ? n - i : width) * sizeof(double);
    if (bytes == sizeof x) {
      std::memcpy(&x, a + i, sizeof x);
      std::memcpy(&y, b + i, sizeof y);
    } else {
      std::memcpy(&x, a + i, bytes);
      std::memcpy(&y, b + i, bytes);
    }
    s[0] += x;
    s[1] += y;
    s[2] += x * x;
    s[3] += y * y;
    s[4] += x * y;
    const vd e = x - y, d = e < 0.0 ? -e : e;
    s[5] = ((d > s[5]) | (d != d)) ? d : s[5];
  }
  add_lanes(s, sums);
}

template <class T>
void add_samples(const MomentsParams& p) {
  sum_samples(p.size, p.partial, p.out,
              [&](int64_t sample, int64_t begin, int64_t n, double* sums) {
                add_block(static_cast<const T*>(p.a) + sample * p.a_stride + begin,
                          static_cast<const T*>(p.b) + sample * p.b_stride + begin, n, sums);
              });
}

}  // namespace

void PIXLEAP_KERNEL(moments)(const MomentsParams& p) {
  if (p.dtype == DType::f64) return add_samples<double>(p);
  with_float_type(p.dtype, [&]<class T>() { add_samples<T>(p); });
}

}  // namespace pixleap
