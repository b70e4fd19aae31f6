// One attention result from those over disjoint sets of keys:
//   lse = logsumexp_i lse_i,  out = sum_i exp(lse_i - lse) out_i
#pragma once

#include <span>

#include "core/dispatch.h"

namespace pixleap {

constexpr int kMergeMaxParts = 16;
static constexpr int64_t kMergeRows = 32;  // rows whose weights are computed together

struct MergePart {
  const void* out;   // (batch, heads, queries, dim)
  const float* lse;  // (batch, heads, queries)
  int64_t out_strides[3], lse_strides[3];
};

struct MergeAttentionParams {
  int64_t batch, heads, queries, dim;
  int parts;
  DType dtype, out_dtype;  // of all parts; of the result
  MergePart in[kMergeMaxParts];
  void* out;   // (batch, heads, queries, dim); may be one of the parts
  float* lse;  // (batch, heads, queries) or null; may be one of the parts'
  // In elements. The last one of results is 1.
  int64_t out_strides[3], lse_strides[3];
};

// `out` is the result alone or with its log-sum-exp after it.
void merge_attention(std::span<const Out> out, std::span<const View> outs,
                     std::span<const View> lses);

PIXLEAP_DECLARE_KERNELS(merge_attention, MergeAttentionParams)

}  // namespace pixleap
