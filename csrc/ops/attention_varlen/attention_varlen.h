// Attention of sequences with different numbers of queries and keys, each as `attention` of it
// alone: queries in packed rows, keys and values in slots of whole caches.
#pragma once

#include "ops/attention/attention.h"

namespace pixleap {

struct AttentionSequence {
  int64_t row, queries;  // its first row, and how many are its
  int64_t slot, keys;
};

struct AttentionTask {  // a block of queries of one head
  int64_t sequence, head, first_query, queries;
};

struct AttentionVarlenParams {
  AttentionParams shared;  // q and out (1, heads, rows, dim), k and v (slots, kv_heads, -, dim)
  const AttentionSequence* sequences;  // (sequence_count,), those with queries; most work first
  const AttentionTask* tasks;
  const int64_t* chunks;  // (chunk_count + 1,): chunk c is tasks chunks[c] to chunks[c + 1] - 1
  int64_t chunk_count, sequence_count;
};

void attention_varlen(const Out& out, const View& q, const View& k, const View& v,
                      const Optional& k_scale, const Optional& v_scale, const View& offsets,
                      const View& lengths, const Optional& slots, bool causal, double scale);

PIXLEAP_DECLARE_KERNELS(attention_varlen, AttentionVarlenParams)

}  // namespace pixleap
