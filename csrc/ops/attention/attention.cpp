#include "ops/attention/attention.h"

#include <algorithm>

#include "core/workspace.h"

namespace pixleap {
namespace {

constexpr KernelTable<AttentionParams> kernels = PIXLEAP_KERNELS_AMX_CUDA(attention);

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

// The numbers of a window mask: windows divide the grid of the tokens, a neighbourhood fits into
// it.
AttentionWindow window_of(const Check& check, std::span<const int64_t> w,
                          const AttentionParams& p) {
  if (w.empty()) return {};
  check.value(w.size() == 8, "mask", "8 numbers", static_cast<int64_t>(w.size()));
  const int64_t most = int64_t{1} << 31;
  for (const int64_t n : w)
    check.value(n > -most && n < most, "mask", "numbers below 2^31 in magnitude", n);
  AttentionWindow window{w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]};
  check.value(window.height > 0 && window.width > 0 && window.height * window.width == p.queries &&
                  p.queries == p.keys,
              "mask",
              "a grid of as many tokens as there are queries and keys (" +
                  std::to_string(p.queries) + ", " + std::to_string(p.keys) + ")",
              window.height * window.width);
  const auto side = [&](const char* name, int64_t extent, int64_t size, int64_t near) {
    const std::string text = std::to_string(extent);
    if (near != 0)
      check.value(near > 0 && near <= extent && near % 2 == 1, "mask",
                  std::string("neighbourhoods of odd ") + name + " up to " + text, near);
    check.value(size > 0 && (near != 0 || extent % size == 0), "mask",
                std::string("windows whose ") + name + " divides " + text, size);
  };
  check.value((window.near_rows == 0) == (window.near_columns == 0), "mask",
              "two numbers for a neighbourhood", "one");
  side("height", window.height, window.rows, window.near_rows);
  side("width", window.width, window.columns, window.near_columns);
  window.down = (window.down % window.height + window.height) % window.height;
  window.right = (window.right % window.width + window.width) % window.width;
  return window;
}

}  // namespace

void attention_keys(const Check& check, AttentionParams& p, const View& q, const View& k,
                    const View& v, const Optional& k_scale, const Optional& v_scale) {
  check.dtype(q, {DType::f32, DType::bf16, DType::f16});
  check.value(p.dim >= 1 && p.dim <= kAttentionMaxDim, "q", "a head dimension of 1 to 256", p.dim);
  check.value(p.heads == 0 || (p.kv_heads > 0 && p.heads % p.kv_heads == 0), "k",
              "a number of heads that divides " + std::to_string(p.heads), p.kv_heads);
  check.same_shape(v, k);
  for (const View* x : {&k, &v}) {
    if (x->dtype != DType::i8) check.same_dtype(*x, q);
    check.same_device(*x, q);
  }
  check.same_dtype(v, k);
  for (const View* x : {&q, &k, &v}) check.unit_last_stride(*x);
  const bool scaled = k.dtype == DType::i8;
  for (const Optional* x : {&k_scale, &v_scale}) {
    const char* name = x == &k_scale ? "k_scale" : "v_scale";
    check.value(x->defined == scaled, name,
                scaled ? "an array beside int8 keys" : "None beside keys of q's dtype",
                x->defined ? "an array" : "None");
    if (!scaled) continue;
    check.dtype(*x, {DType::f32});
    check.shape(*x, {k.shape[0], k.shape[1], k.shape[2]});
    check.same_device(*x, q);
  }
  p.dtype = q.dtype, p.kv_dtype = k.dtype;
  p.q = q.data, p.k = k.data, p.v = v.data;
  std::copy_n(k.strides, 3, p.k_strides);
  std::copy_n(v.strides, 3, p.v_strides);
  if (!scaled) return;
  p.k_scale = k_scale.as<const float>(), p.v_scale = v_scale.as<const float>();
  std::copy_n(k_scale.strides, 3, p.k_scale_strides);
  std::copy_n(v_scale.strides, 3, p.v_scale_strides);
}

void attention(std::span<const Out> out, std::span<const Out> scratch, const View& q, const View& k,
               const View& v, const Optional& k_scale, const Optional& v_scale,
               const Optional& mask, const Optional& visible, std::span<const int64_t> window,
               bool causal, double scale) {
  const Check check("attention");
  check.ndim(q, 4);
  check.ndim(k, 4);
  AttentionParams p{};
  p.batch = q.shape[0], p.heads = q.shape[1], p.queries = q.shape[2], p.dim = q.shape[3];
  p.kv_heads = k.shape[1], p.keys = k.shape[2];
  check.shape(k, {p.batch, -1, -1, p.dim});
  attention_keys(check, p, q, k, v, k_scale, v_scale);
  std::copy_n(q.strides, 3, p.q_strides);

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
    std::copy_n(out[1].strides, 3, p.lse_strides);
  }
  for (size_t i = 0; i < out.size(); ++i) {
    check.output(out[i]);
    check.same_device(out[i], q);
    check.no_overlap(out[i], q, i == 0);  // a task has read its queries before it writes them
    for (const View* x :
         std::initializer_list<const View*>{&k, &v, &k_scale, &v_scale, &mask, &visible})
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

  p.window = window_of(check, window, p);
  check.value(window.empty() || !(mask.defined || visible.defined || causal), "mask",
              "no other mask beside windows", "one");

  p.out = out[0].data;
  std::copy_n(out[0].strides, 3, p.out_strides);
  p.causal = causal;
  p.scale = static_cast<float>(scale);
  const int64_t works = p.batch * p.heads * p.queries, chunks = attention_chunks(p.keys);
  if (!scratch.empty() && p.queries <= kAttentionStreamUpTo && works < (1 << 20) &&
      chunks < (1 << 30) && workspace_size(check, scratch, q, works * chunks * (p.dim + 2) / 2 + 1))
    p.split = scratch[0].as<float>();
  if (out[0].numel() > 0) kernels.run(check, p, q);
}

}  // namespace pixleap
