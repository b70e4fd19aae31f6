// Splits a fused projection into queries, and keys and values that go into their caches.
//   out[b, h, l] = qkv[b, l, 0, h]   k_cache[b, h, position + l] = qkv[b, l, 1, h]   (v alike)
// On the way q and k may be normalised (l2 with a scale per head of q, or RMS with weights) and
// then rotated by tables of angles, and keys and values rounded to int8 with a scale per token and
// head. One pass, float32 inside, one rounding at the end.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "core/dispatch.h"
#include "core/host_device.h"

namespace pixleap {

enum class QkNorm : uint8_t { none, l2, rms };

// What a caller may want of q and k, as the fronts get it.
struct KvAppendOptions {
  std::span<const Out> cache_scales;  // none, or of the keys and of the values
  const Optional& q_scale;
  std::string_view norm;
  const Optional &q_weight, &k_weight;
  double eps;
  std::span<const View> rope;  // none, or cos and sin
  const Optional& rope_positions;
  bool rope_interleaved;
};

struct KvAppendParams {
  DType dtype;            // of qkv and out
  DType cache_dtype;      // the same, or int8
  const void* qkv;        // (batch, length, 3, heads, dim)
  void* out;              // (batch, heads, length, dim)
  void* cache[2];         // keys, values: (batch, heads, capacity, dim)
  float* cache_scale[2];  // (batch, heads, capacity) of int8 caches
  int64_t position;       // of the first token in the caches
  int64_t qkv_strides[4], out_strides[3], cache_strides[2][3], cache_scale_strides[2][3];
  int64_t batch, length, heads, dim;

  QkNorm norm;
  float eps;            // of rms
  const void* q_scale;  // (heads,) or null, of l2
  DType q_scale_dtype;
  int64_t q_scale_stride;
  const void* weight[2];  // of q, of k: (heads, dim) or null, of rms
  DType weight_dtype[2];
  int64_t weight_strides[2];  // over heads; 0 where all have the same

  const void* rope[2];  // cos, sin: (rope_rows, pairs), or (batch, length, pairs); null for none
  DType rope_dtype[2];
  int64_t rope_strides[2][2], rope_rows, pairs;
  bool rope_per_token, rope_interleaved;
  const int64_t* rope_positions;  // (batch, length): rows of rope; null for the cache's positions
  int64_t rope_position_strides[2];
};

// Row of the tables for a token, from where the token starts in the caches.
PIXLEAP_HD static inline int64_t rope_row(const KvAppendParams& p, int64_t b, int64_t l,
                                          int64_t position) {
  if (!p.rope_positions) return position;
  return p.rope_positions[b * p.rope_position_strides[0] + l * p.rope_position_strides[1]];
}

// Tokens of a task: 2^15 numbers or more.
static inline int64_t kv_append_grain(const KvAppendParams& p) {
  return (1 << 15) / (3 * p.heads * p.dim) + 1;
}

// What both fronts ask of their arrays beyond the shapes of out and caches, and all of `p` that
// follows from the options. `positions` receives a copy of rope_positions that `p` points to: what
// was checked cannot change any more.
void kv_append_arrays(const Check& check, KvAppendParams& p, const Out& out, const Out& k_cache,
                      const Out& v_cache, const View& qkv, const KvAppendOptions& options,
                      std::vector<int64_t>& positions);

// Whether `end` tokens, counted from the start of a cache, have rows in the tables.
void check_rope_rows(const Check& check, const KvAppendParams& p, int64_t end);

void kv_append(const Out& out, const Out& k_cache, const Out& v_cache,
               std::span<const Out> cache_scales, const View& qkv, int64_t position,
               const Optional& q_scale, std::string_view norm, const Optional& q_weight,
               const Optional& k_weight, double eps, std::span<const View> rope,
               const Optional& rope_positions, bool rope_interleaved);

PIXLEAP_DECLARE_KERNELS(kv_append, KvAppendParams)

}  // namespace pixleap
