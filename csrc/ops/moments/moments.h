// Per-sample sums over everything but the first axis:
//   out[b] = (sum a, sum b, sum a a, sum b b, sum a b, max |a - b|)
#pragma once

#include "core/dispatch.h"
#include "core/sample_sums.h"

namespace pixleap {

struct MomentsParams {
  DType dtype;
  SampleSums size;
  const void *a, *b;           // (B, length), stride 1 along length
  int64_t a_stride, b_stride;  // between samples, in elements
  double* out;                 // (B, 6)
  double* partial;             // (B, chunks, 6) on the CPU, if there is more than one chunk
};

void moments(const Out& out, const View& a, const View& b);

PIXLEAP_DECLARE_KERNELS(moments, MomentsParams)

}  // namespace pixleap
