// Per-sample sums over everything but the first axis:
//   out[b] = (sum a, sum b, sum a a, sum b b, sum a b, max |a - b|)
#pragma once

#include "core/dispatch.h"
#include "core/rows.h"

namespace pixleap {

constexpr int kMoments = 6;
constexpr int64_t kMomentsChunk = 1 << 15;  // elements of a sample that one task adds

struct MomentsParams {
  DType dtype;
  const void *a, *b;           // (B, length), stride 1 along length
  int64_t batch, length;       // length: product of the other extents
  int64_t a_stride, b_stride;  // between samples, in elements
  double* out;                 // (B, 6)
  int64_t chunks;              // of a sample, at least 1
  double* partial;             // (B, chunks, 6) on the CPU, if there is more than one chunk
};

void moments(const Out& out, const View& a, const View& b);

PIXLEAP_DECLARE_KERNELS(moments, MomentsParams)

}  // namespace pixleap
