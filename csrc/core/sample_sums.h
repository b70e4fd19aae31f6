// What ops that reduce every sample (all but the first axis) of their arrays have in common.
#pragma once

#include "core/check.h"
#include "core/view.h"

namespace pixleap {

constexpr int kMoments = 6;                 // sums of a, b, a a, b b, a b, and the largest |a - b|
constexpr int64_t kMomentsChunk = 1 << 15;  // elements of a sample that one task adds

struct SampleSums {
  int64_t batch, length;  // length: product of the other extents
  int64_t chunks;         // of a sample, at least 1

  static SampleSums of(const View& v) {
    int64_t length = 1;
    for (int i = 1; i < v.ndim; ++i) length *= v.shape[i];
    const int64_t chunks = (length + kMomentsChunk - 1) / kMomentsChunk;
    return {v.size(0), length, chunks ? chunks : 1};
  }
};

// Every sample is one contiguous run; samples may lie apart.
inline void check_samples(const Check& check, const View& v) {
  View sample = v;
  sample.shape[0] = v.numel() ? 1 : 0;
  check.contiguous(sample);
}

}  // namespace pixleap
