#include "ops/attention/attention.h"

#include <algorithm>

namespace pixleap {
namespace {

constexpr KernelTable<AttentionParams> kernels = PIXLEAP_KERNELS(attention);

void copy_strides(const View& v, std::span<int64_t> strides) {
  for (size_t i = 0; i < strides.size(); ++i) strides[i] = v.strides[i];
}

// Strides of `v` broadcast to `extents`, aligned at the last dimension.
void broadcast_strides(const Check& check, const View& v, std::span<const int64_t> extents,
                       std::span<int64_t> strides) {
  const int rank = static_cast<int>(extents.size());
  bool ok = v.ndim <= rank;
  std::string text;
  for (int i = 0; i < rank; ++i) {
    text += (i ? ", " : "") + std::to_string(extents[static_cast<size_t>(i)]);
    const int dim = i - (rank - v.ndim);
    if (dim < 0) continue;
    ok = ok && (v.shape[dim] == 1 || v.shape[dim] == extents[static_cast<size_t>(i)]);
    if (ok && v.shape[dim] != 1) strides[static_cast<size_t>(i)] = v.strides[dim];
  }
  check.value(ok, v.name, "a shape broadcastable to (" + text + ")", shape_string(v));
}

}  // namespace

void attention(std::span<const Out> out, const View& q, const View& k, const View& v,
               const Optional& mask, const Optional& visible, bool causal, double scale) {
  const Check check("attention");
  check.dtype(q, {DType::f32, DType::bf16, DType::f16});
  check.ndim(q, 4);
  check.ndim(k, 4);
  AttentionParams p{};
  p.batch = q.shape[0], p.heads = q.shape[1], p.queries = q.shape[2], p.dim = q.shape[3];
  p.kv_heads = k.shape[1], p.keys = k.shape[2];
  check.value(p.dim >= 1 && p.dim <= kAttentionMaxDim, "q", "a head dimension of 1 to 256", p.dim);
  check.shape(k, {p.batch, -1, -1, p.dim});
  check.value(p.heads == 0 || (p.kv_heads > 0 && p.heads % p.kv_heads == 0), "k",
              "a number of heads that divides " + std::to_string(p.heads), p.kv_heads);
  check.same_shape(v, k);
  for (const View* x : {&k, &v}) {
    check.same_dtype(*x, q);
    check.same_device(*x, q);
  }
  for (const View* x : {&q, &k, &v}) check.unit_last_stride(*x);

  const auto outputs = static_cast<int64_t>(out.size());
  check.value(outputs == 1 || outputs == 2, "out", "1 or 2 arrays", outputs);
  check.shape(out[0], {p.batch, p.heads, p.queries, p.dim});
  check.same_dtype(out[0], q);
  check.unit_last_stride(out[0]);
  if (outputs == 2) {
    check.dtype(out[1], {DType::f32});
    check.shape(out[1], {p.batch, p.heads, p.queries});
    check.no_overlap(out[1], out[0], false);
    p.lse = out[1].as<float>();
    copy_strides(out[1], p.lse_strides);
  }
  for (size_t i = 0; i < out.size(); ++i) {
    check.output(out[i]);
    check.same_device(out[i], q);
    check.no_overlap(out[i], q, i == 0);  // a task has read its queries before it writes them
    for (const View* x :
         {&k, &v, static_cast<const View*>(&mask), static_cast<const View*>(&visible)})
      check.no_overlap(out[i], *x, false);
  }
  if (mask.defined) {
    check.same_device(mask, q);
    if (mask.dtype != DType::f32) check.same_dtype(mask, q);
    const int64_t extents[] = {p.batch, p.heads, p.queries, p.keys};
    broadcast_strides(check, mask, extents, p.mask_strides);
    p.mask = mask.data;
    p.mask_dtype = mask.dtype;
  }
  if (visible.defined) {
    check.same_device(visible, q);
    check.dtype(visible, {DType::i64});
    check.ndim(visible, 2);
    const int64_t extents[] = {p.batch, p.queries};
    broadcast_strides(check, visible, extents, p.visible_strides);
    p.visible = visible.as<const int64_t>();
  }
  check.value(
      !causal || p.keys >= p.queries, "k",
      "at least as many keys as queries (" + std::to_string(p.queries) + ") for a causal mask",
      p.keys);

  p.dtype = q.dtype;
  p.q = q.data, p.k = k.data, p.v = v.data, p.out = out[0].data;
  copy_strides(q, p.q_strides);
  copy_strides(k, p.k_strides);
  copy_strides(v, p.v_strides);
  copy_strides(out[0], p.out_strides);
  p.causal = causal;
  p.scale = static_cast<float>(scale);
  if (out[0].numel() > 0) kernels.run(check, p, q);
}

}  // namespace pixleap
