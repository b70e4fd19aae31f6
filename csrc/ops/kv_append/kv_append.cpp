#include "ops/kv_append/kv_append.h"

#include <algorithm>

namespace pixleap {
namespace {

constexpr KernelTable<KvAppendParams> kernels = PIXLEAP_KERNELS_CUDA(kv_append);

// Parameters of the op are float32 or as qkv.
void check_parameter(const Check& check, const View& v, const View& qkv) {
  if (v.dtype != DType::f32) check.same_dtype(v, qkv);
  check.same_device(v, qkv);
}

void check_norm(const Check& check, KvAppendParams& p, const View& qkv, const KvAppendOptions& o) {
  const std::string norm(o.norm);
  check.value(norm.empty() || norm == "l2" || norm == "rms", "norm", "None, 'l2' or 'rms'", norm);
  p.norm = norm == "rms"                       ? QkNorm::rms
           : norm == "l2" || o.q_scale.defined ? QkNorm::l2
                                               : QkNorm::none;
  if (o.q_scale.defined) {
    check.value(p.norm == QkNorm::l2, "q_scale", "None with norm='rms'", "an array");
    check_parameter(check, o.q_scale, qkv);
    check.shape(o.q_scale, {p.heads});
    p.q_scale = o.q_scale.data;
    p.q_scale_dtype = o.q_scale.dtype;
    p.q_scale_stride = o.q_scale.strides[0];
  }
  const Optional* weights[] = {&o.q_weight, &o.k_weight};
  for (int i = 0; i < 2; ++i) {
    const Optional& w = *weights[i];
    if (!w.defined) continue;
    check.value(p.norm == QkNorm::rms, w.name, "None without norm='rms'", "an array");
    check_parameter(check, w, qkv);
    if (w.ndim == 1)
      check.shape(w, {p.dim});
    else
      check.shape(w, {p.heads, p.dim});
    check.unit_last_stride(w);
    p.weight[i] = w.data;
    p.weight_dtype[i] = w.dtype;
    p.weight_strides[i] = w.ndim == 1 ? 0 : w.strides[0];
  }
  check.value(o.eps >= 0 && o.eps <= 1, "eps", "a number from 0 to 1", o.eps);
  p.eps = static_cast<float>(o.eps);
}

void check_rope(const Check& check, KvAppendParams& p, const View& qkv, const KvAppendOptions& o,
                std::vector<int64_t>& positions) {
  p.rope_interleaved = o.rope_interleaved;
  const Optional& at = o.rope_positions;
  if (o.rope.empty()) {
    check.value(!at.defined, at.name, "None without 'rope'", "an array");
    return;
  }
  check.value(o.rope.size() == 2, "rope", "the pair (cos, sin)",
              std::to_string(o.rope.size()) + " arrays");
  const View& cosine = o.rope[0];
  p.rope_per_token = cosine.ndim == 3;
  for (int i = 0; i < 2; ++i) {
    const View& table = o.rope[static_cast<size_t>(i)];
    check_parameter(check, table, qkv);
    if (i > 0)
      check.same_shape(table, cosine);
    else if (p.rope_per_token)
      check.shape(table, {table.shape[0] == 1 ? 1 : p.batch, p.length, -1});
    else
      check.shape(table, {-1, -1});
    check.unit_last_stride(table);
    p.rope[i] = table.data;
    p.rope_dtype[i] = table.dtype;
    p.rope_strides[i][0] = p.rope_per_token && table.shape[0] > 1 ? table.strides[0] : 0;
    p.rope_strides[i][1] = table.stride(-2);
  }
  p.pairs = cosine.size(-1);
  p.rope_rows = cosine.size(-2);
  check.value(p.pairs <= p.dim / 2, "rope",
              "at most " + std::to_string(p.dim / 2) + " angles, half of the head dimension " +
                  std::to_string(p.dim),
              p.pairs);
  if (!at.defined) return;
  check.value(!p.rope_per_token, at.name, "None with tables per token", "an array");
  check.dtype(at, {DType::i64});
  check.same_device(at, qkv);
  if (at.ndim == 1)
    check.shape(at, {p.length});
  else
    check.shape(at, {at.shape[0] == 1 ? 1 : p.batch, p.length});
  const int64_t samples = at.ndim == 1 ? 1 : at.shape[0], stride = samples > 1 ? at.strides[0] : 0;
  check.value(p.rope_rows > 0 || p.length == 0, "rope", "tables with rows", p.rope_rows);
  p.rope_positions = at.as<const int64_t>();
  p.rope_position_strides[0] = stride;
  p.rope_position_strides[1] = at.stride(-1);
  if (qkv.device.type != DeviceType::cpu) return;  // rows out of range give NaN there
  for (int64_t b = 0; b < samples; ++b) {
    for (int64_t l = 0; l < p.length; ++l) {
      const int64_t row = p.rope_positions[b * stride + l * at.stride(-1)];
      if (row < 0 || row >= p.rope_rows)
        check.value(false, at.name, "rows of 'rope', 0 to " + std::to_string(p.rope_rows - 1), row);
      positions.push_back(row);
    }
  }
  p.rope_positions = positions.data();
  p.rope_position_strides[0] = samples > 1 ? p.length : 0;
  p.rope_position_strides[1] = 1;
}

}  // namespace

void kv_append_arrays(const Check& check, KvAppendParams& p, const Out& out, const Out& k_cache,
                      const Out& v_cache, const View& qkv, const KvAppendOptions& options,
                      std::vector<int64_t>& positions) {
  Out outputs[] = {out, k_cache, v_cache, {}, {}};
  size_t count = 3;
  check.same_dtype(out, qkv);
  if (k_cache.dtype != DType::i8) check.same_dtype(k_cache, qkv);
  check.same_dtype(v_cache, k_cache);
  p.dtype = qkv.dtype;
  p.cache_dtype = k_cache.dtype;
  const bool quantised = p.cache_dtype == DType::i8;
  check.value(options.cache_scales.size() == (quantised ? 2 : 0), "k_scale",
              quantised ? "with 'v_scale', the scales of int8 caches"
                        : "None and no 'v_scale', as only int8 caches have scales",
              std::to_string(options.cache_scales.size()) + " of the two");
  for (const Out& given : options.cache_scales) {
    Out& scale = outputs[count];
    scale = given;
    scale.name = count == 3 ? "k_scale" : "v_scale";
    check.dtype(scale, {DType::f32});
    check.shape(scale, {k_cache.shape[0], k_cache.shape[1], k_cache.shape[2]});
    std::copy_n(scale.strides, 3, p.cache_scale_strides[count - 3]);
    p.cache_scale[count - 3] = scale.as<float>();
    ++count;
  }
  check_norm(check, p, qkv, options);
  check_rope(check, p, qkv, options, positions);
  for (size_t i = 0; i < count; ++i) {
    check.same_device(outputs[i], qkv);
    if (i < 3) check.unit_last_stride(outputs[i]);
    check.output(outputs[i]);
    for (const View* input :
         {&qkv, static_cast<const View*>(&options.q_scale),
          static_cast<const View*>(&options.q_weight), static_cast<const View*>(&options.k_weight),
          static_cast<const View*>(&options.rope_positions)})
      check.no_overlap(outputs[i], *input, false);
    for (const View& table : options.rope) check.no_overlap(outputs[i], table, false);
    for (size_t j = 0; j < i; ++j) check.no_overlap(outputs[i], outputs[j], false);
  }
  const Out* caches[] = {&k_cache, &v_cache};
  for (int i = 0; i < 2; ++i) {
    std::copy_n(caches[i]->strides, 3, p.cache_strides[i]);
    p.cache[i] = caches[i]->data;
  }
}

void check_rope_rows(const Check& check, const KvAppendParams& p, int64_t end) {
  check.value(!p.rope[0] || p.rope_per_token || p.rope_positions || end <= p.rope_rows, "rope",
              "tables of at least " + std::to_string(end) + " positions", p.rope_rows);
}

void kv_append(const Out& out, const Out& k_cache, const Out& v_cache,
               std::span<const Out> cache_scales, const View& qkv, int64_t position,
               const Optional& q_scale, std::string_view norm, const Optional& q_weight,
               const Optional& k_weight, double eps, std::span<const View> rope,
               const Optional& rope_positions, bool rope_interleaved) {
  const Check check("kv_append");
  check.dtype(qkv, {DType::f32, DType::bf16, DType::f16});
  check.shape(qkv, {-1, -1, 3, -1, -1});
  check.unit_last_stride(qkv);
  KvAppendParams p{};
  p.batch = qkv.shape[0], p.length = qkv.shape[1], p.heads = qkv.shape[3], p.dim = qkv.shape[4];
  check.shape(out, {p.batch, p.heads, p.length, p.dim});
  check.shape(k_cache, {p.batch, p.heads, -1, p.dim});
  check.same_shape(v_cache, k_cache);
  std::vector<int64_t> rows;
  kv_append_arrays(check, p, out, k_cache, v_cache, qkv,
                   {cache_scales, q_scale, norm, q_weight, k_weight, eps, rope, rope_positions,
                    rope_interleaved},
                   rows);
  const int64_t capacity = k_cache.shape[2];
  check.value(p.length <= capacity, "qkv",
              "at most " + std::to_string(capacity) + " positions, which the caches hold",
              p.length);
  check.value(position >= 0 && position <= capacity - p.length, "position",
              "0 to " + std::to_string(capacity - p.length) + ", so that " +
                  std::to_string(p.length) + " more fit into " + std::to_string(capacity),
              position);
  if (qkv.numel() == 0) return;
  check_rope_rows(check, p, position + p.length);
  p.position = position;
  p.qkv = qkv.data;
  p.out = out.data;
  std::copy_n(qkv.strides, 4, p.qkv_strides);
  std::copy_n(out.strides, 3, p.out_strides);
  kernels.run(check, p, qkv);
}

}  // namespace pixleap
