// The k smallest squared distances of every row of x to the rows of y (to the other rows of x where
// y is None), ascending, and which rows they belong to.
#pragma once

#include "core/dispatch.h"
#include "core/pairwise.h"

namespace pixleap {

constexpr int64_t kTopkMax = 64;
// Candidates kept beyond k: float32 chooses them, float64 decides among them.
constexpr int64_t kTopkSpare = 8;

struct PairwiseTopkParams {
  PairwiseSets sets;
  int64_t k;
  int64_t kept;       // per row, k + kTopkSpare at most
  float* candidates;  // (N, kept) CPU scratch
  int32_t* rows;      // (N, kept) CPU scratch
  double* distances;  // (N, k) contiguous
  int64_t* indices;   // (N, k) contiguous
};

void pairwise_topk(const Out& distances, const Out& indices, std::span<const Out> workspace,
                   const View& x, const Optional& y, int64_t k);

PIXLEAP_DECLARE_KERNELS(pairwise_topk, PairwiseTopkParams)

}  // namespace pixleap
