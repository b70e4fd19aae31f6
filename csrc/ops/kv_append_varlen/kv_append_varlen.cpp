#include "ops/kv_append_varlen/kv_append_varlen.h"

#include <algorithm>
#include <numeric>

#include "core/ragged.h"

namespace pixleap {
namespace {

constexpr KernelTable<KvAppendVarlenParams> kernels = PIXLEAP_KERNELS_CUDA(kv_append_varlen);

// No two sequences may write one position of a slot.
void check_apart(const Check& check, const std::vector<int64_t>& offsets,
                 const std::vector<int64_t>& slots, const std::vector<int64_t>& positions) {
  const auto length = [&](size_t i) { return offsets[i + 1] - offsets[i]; };
  std::vector<size_t> order(slots.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::erase_if(order, [&](size_t i) { return length(i) == 0; });
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(slots[a], positions[a]) < std::pair(slots[b], positions[b]);
  });
  for (size_t i = 1; i < order.size(); ++i) {
    const size_t a = order[i - 1], b = order[i];
    if (slots[a] == slots[b] && positions[a] + length(a) > positions[b])
      check.value(false, "positions", "sequences that write apart",
                  std::to_string(std::min(a, b)) + " and " + std::to_string(std::max(a, b)) +
                      " both at " + std::to_string(positions[b]) + " of slot " +
                      std::to_string(slots[b]));
  }
}

}  // namespace

void kv_append_varlen(const Out& out, const Out& k_cache, const Out& v_cache,
                      std::span<const Out> cache_scales, const View& qkv, const View& offsets,
                      const View& positions, const Optional& slots, const Optional& q_scale,
                      std::string_view norm, const Optional& q_weight, const Optional& k_weight,
                      double eps, std::span<const View> rope, const Optional& rope_positions,
                      bool rope_interleaved) {
  const Check check("kv_append_varlen");
  check.dtype(qkv, {DType::f32, DType::bf16, DType::f16});
  check.shape(qkv, {-1, 3, -1, -1});
  check.unit_last_stride(qkv);
  KvAppendVarlenParams p{};
  KvAppendParams& one = p.shared;
  one.batch = 1, one.length = qkv.shape[0], one.heads = qkv.shape[2], one.dim = qkv.shape[3];
  check.shape(out, {one.length, one.heads, one.dim});
  check.shape(k_cache, {-1, one.heads, -1, one.dim});
  check.same_shape(v_cache, k_cache);
  std::vector<int64_t> rows;
  kv_append_arrays(check, one, out, k_cache, v_cache, qkv,
                   {cache_scales, q_scale, norm, q_weight, k_weight, eps, rope, rope_positions,
                    rope_interleaved},
                   rows);

  const std::vector<int64_t> begins = sequence_offsets(check, offsets, one.length);
  const auto n = static_cast<int64_t>(begins.size()) - 1;
  const std::vector<int64_t> at = host_integers(check, positions, n);
  const std::vector<int64_t> where = sequence_slots(check, slots, n, k_cache);
  const int64_t capacity = k_cache.shape[2];
  std::vector<KvAppendSequence> sequences;
  sequences.reserve(at.size());
  for (size_t i = 0; i < at.size(); ++i) {
    const int64_t length = begins[i + 1] - begins[i], index = static_cast<int64_t>(i);
    if (length > capacity)
      check_sequence(check, false, "offsets",
                     "at most " + std::to_string(capacity) + " rows, which a slot holds", length,
                     index);
    if (at[i] < 0 || at[i] > capacity - length)
      check_sequence(check, false, "positions",
                     "0 to " + std::to_string(capacity - length) + ", so that " +
                         std::to_string(length) + " more fit into " + std::to_string(capacity),
                     at[i], index);
    if (length == 0) continue;
    check_rope_rows(check, one, at[i] + length);
    sequences.push_back({begins[i], where[i], at[i]});
  }
  check_apart(check, begins, where, at);
  if (qkv.numel() == 0) return;

  one.qkv = qkv.data, one.out = out.data;
  std::copy_n(qkv.strides, 3, one.qkv_strides + 1);
  one.out_strides[1] = out.strides[1], one.out_strides[2] = out.strides[0];
  p.sequences = sequences.data();
  p.count = static_cast<int64_t>(sequences.size());
  kernels.run(check, p, qkv);
}

}  // namespace pixleap
