// The six sums per sample of two arrays, in chunks whose order no thread count changes; `moments`
// and `guidance_weights` are made of them.
#pragma once

#include "core/parallel.h"
#include "core/sample_sums.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int64_t kMomentsBlock = 512;  // float32 lanes add so many elements, then float64 does

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
PIXLEAP_INLINE void add_moments(const T* a, const T* b, int64_t n, double* sums) {
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

// add(sample, begin, n, sums) adds elements [begin, begin + n) of a sample; blocks of a sample are
// added in order. `partial` holds (batch, chunks, kMoments) where there is more than one chunk;
// out is (batch, kMoments).
template <class Add>
PIXLEAP_INLINE void sum_samples(const SampleSums& size, double* partial, double* out,
                                const Add& add) {
  const auto [batch, length, chunks] = size;
  // Chunks of all samples, whole samples to a task where these are short.
  const int64_t grain = chunks > 1 ? 1 : kMomentsChunk / (length + 1) + 1;
  parallel_for(batch * chunks, grain, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t sample = task / chunks, begin = task % chunks * kMomentsChunk;
      const int64_t end = length - begin < kMomentsChunk ? length : begin + kMomentsChunk;
      double sums[kMoments] = {};
      for (int64_t i = begin; i < end; i += kMomentsBlock)
        add(sample, i, end - i < kMomentsBlock ? end - i : kMomentsBlock, sums);
      double* to = (chunks > 1 ? partial : out) + task * kMoments;
      for (int k = 0; k < kMoments; ++k) to[k] = sums[k];
    }
  });
  if (chunks == 1) return;
  for (int64_t sample = 0; sample < batch; ++sample) {
    double sums[kMoments] = {};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const double* from = partial + (sample * chunks + chunk) * kMoments;
      for (int k = 0; k < kMoments - 1; ++k) sums[k] += from[k];
      const double d = from[kMoments - 1];
      if (d > sums[kMoments - 1] || d != d) sums[kMoments - 1] = d;
    }
    for (int k = 0; k < kMoments; ++k) out[sample * kMoments + k] = sums[k];
  }
}

}  // namespace
}  // namespace pixleap
