// `kv_append` for sequences of different lengths in packed rows, each at its own position of its
// own slot of whole caches.
#pragma once

#include "ops/kv_append/kv_append.h"

namespace pixleap {

struct KvAppendSequence {
  int64_t row, slot, position;  // the first row, and where its keys and values go
};

struct KvAppendVarlenParams {
  // qkv (1, rows, 3, heads, dim), out (1, heads, rows, dim), caches (slots, heads, capacity, dim)
  KvAppendParams shared;
  const KvAppendSequence* sequences;  // those with rows, in the order of their rows, from row 0 on
  int64_t count;
};

void kv_append_varlen(const Out& out, const Out& k_cache, const Out& v_cache,
                      std::span<const Out> cache_scales, const View& qkv, const View& offsets,
                      const View& positions, const Optional& slots, const Optional& q_scale,
                      std::string_view norm, const Optional& q_weight, const Optional& k_weight,
                      double eps, std::span<const View> rope, const Optional& rope_positions,
                      bool rope_interleaved);

PIXLEAP_DECLARE_KERNELS(kv_append_varlen, KvAppendVarlenParams)

}  // namespace pixleap
