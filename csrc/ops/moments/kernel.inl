#include "core/parallel.h"
#include "ops/moments/moments.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int64_t kBlock = 512;  // float32 lanes add this many elements, then float64 takes over

// Adds the lanes of a block's sums, then its largest difference.
template <class Lanes>
PIXLEAP_INLINE void add_lanes(const Lanes (&s)[kMoments], double* sums) {
  constexpr int lanes = static_cast<int>(sizeof s[0] / sizeof s[0][0]);
  for (int k = 0; k < kMoments - 1; ++k) {
    double sum = 0;
    for (int i = 0; i < lanes; ++i) sum += static_cast<double>(s[k][i]);
    sums[k] += sum;
  }
  double& most = sums[kMoments - 1];
  for (int i = 0; i < lanes; ++i) {
    const auto d = static_cast<double>(s[kMoments - 1][i]);
    if (d > most || d != d) most = d;
  }
}

template <class T>
void add_block(const T* a, const T* b, int64_t n, double* sums) {
  vf s[kMoments] = {};
  for_each_vector(n, [&](int64_t i, int64_t lanes) {
    const vf x = load_upto(a + i, lanes), y = load_upto(b + i, lanes);
    s[0] += x;
    s[1] += y;
    s[2] = fma(x, x, s[2]);
    s[3] = fma(y, y, s[3]);
    s[4] = fma(x, y, s[4]);
    const vf d = vabs(x - y);
    s[5] = select((d > s[5]) | (d != d), d, s[5]);  // NaN stays
  });
  add_lanes(s, sums);
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
  // Chunks of all samples, whole samples to a task where these are short.
  const int64_t tasks = p.batch * p.chunks;
  const int64_t grain = p.chunks > 1 ? 1 : kMomentsChunk / (p.length + 1) + 1;
  parallel_for(tasks, grain, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t sample = task / p.chunks, begin = task % p.chunks * kMomentsChunk;
      const int64_t end = p.length - begin < kMomentsChunk ? p.length : begin + kMomentsChunk;
      const T* a = static_cast<const T*>(p.a) + sample * p.a_stride;
      const T* b = static_cast<const T*>(p.b) + sample * p.b_stride;
      double sums[kMoments] = {};
      for (int64_t i = begin; i < end; i += kBlock)
        add_block(a + i, b + i, end - i < kBlock ? end - i : kBlock, sums);
      double* to = (p.chunks > 1 ? p.partial : p.out) + task * kMoments;
      for (int k = 0; k < kMoments; ++k) to[k] = sums[k];
    }
  });
  if (p.chunks == 1) return;
  for (int64_t sample = 0; sample < p.batch; ++sample) {
    double sums[kMoments] = {};
    for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
      const double* from = p.partial + (sample * p.chunks + chunk) * kMoments;
      for (int k = 0; k < kMoments - 1; ++k) sums[k] += from[k];
      const double d = from[kMoments - 1];
      if (d > sums[kMoments - 1] || d != d) sums[kMoments - 1] = d;
    }
    for (int k = 0; k < kMoments; ++k) p.out[sample * kMoments + k] = sums[k];
  }
}

}  // namespace

void PIXLEAP_KERNEL(moments)(const MomentsParams& p) {
  if (p.dtype == DType::f64) return add_samples<double>(p);
  with_float_type(p.dtype, [&]<class T>() { add_samples<T>(p); });
}

}  // namespace pixleap
