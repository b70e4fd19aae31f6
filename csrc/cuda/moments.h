// The six sums of one sample by one block: `moments` and `guidance_weights` are made of them.
#pragma once

#include "core/sample_sums.h"
#include "cuda/launch.h"

namespace pixleap {

constexpr int kMomentsThreads = 256;

// load(i, x, y) gives element i of both arrays. Every thread strides over the sample in float64,
// then a tree in shared memory; shared[k][0] are the sums until the next __syncthreads().
template <class Load>
__device__ void block_moments(int64_t length, double (&shared)[kMoments][kMomentsThreads],
                              Load load) {
  double s[kMoments] = {};
  for (int64_t i = threadIdx.x; i < length; i += kMomentsThreads) {
    double x, y;
    load(i, x, y);
    const double d = fabs(x - y);
    s[0] += x, s[1] += y, s[2] += x * x, s[3] += y * y, s[4] += x * y;
    if (d > s[5] || d != d) s[5] = d;
  }
  for (int k = 0; k < kMoments; ++k) shared[k][threadIdx.x] = s[k];
  __syncthreads();
  for (int step = kMomentsThreads / 2; step; step /= 2) {
    if (threadIdx.x < step) {
      for (int k = 0; k < 5; ++k) shared[k][threadIdx.x] += shared[k][threadIdx.x + step];
      const double d = shared[5][threadIdx.x + step];
      if (d > shared[5][threadIdx.x] || d != d) shared[5][threadIdx.x] = d;
    }
    __syncthreads();
  }
}

}  // namespace pixleap
