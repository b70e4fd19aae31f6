#include "ops/kv_append/kv_append.h"

#include <algorithm>

namespace pixleap {
namespace {

constexpr KernelTable<KvAppendParams> kernels = PIXLEAP_KERNELS_CUDA(kv_append);

}  // namespace

void kv_append_arrays(const Check& check, KvAppendParams& p, const Out& out, const Out& k_cache,
                      const Out& v_cache, const View& qkv, const Optional& q_scale) {
  for (const Out* x : {&out, &k_cache, &v_cache}) {
    check.same_dtype(*x, qkv);
    check.same_device(*x, qkv);
    check.unit_last_stride(*x);
    check.output(*x);
    check.no_overlap(*x, qkv, false);
    check.no_overlap(*x, q_scale, false);
  }
  check.no_overlap(out, k_cache, false);
  check.no_overlap(out, v_cache, false);
  check.no_overlap(v_cache, k_cache, false);
  p.dtype = qkv.dtype;
  if (q_scale.defined) {
    if (q_scale.dtype != DType::f32) check.same_dtype(q_scale, qkv);
    check.same_device(q_scale, qkv);
    check.shape(q_scale, {p.heads});
    p.q_scale = q_scale.data;
    p.q_scale_dtype = q_scale.dtype;
    p.q_scale_stride = q_scale.strides[0];
  }
}

void kv_append(const Out& out, const Out& k_cache, const Out& v_cache, const View& qkv,
               int64_t position, const Optional& q_scale) {
  const Check check("kv_append");
  check.dtype(qkv, {DType::f32, DType::bf16, DType::f16});
  check.shape(qkv, {-1, -1, 3, -1, -1});
  check.unit_last_stride(qkv);
  KvAppendParams p{};
  p.batch = qkv.shape[0], p.length = qkv.shape[1], p.heads = qkv.shape[3], p.dim = qkv.shape[4];
  check.shape(out, {p.batch, p.heads, p.length, p.dim});
  check.shape(k_cache, {p.batch, p.heads, -1, p.dim});
  check.same_shape(v_cache, k_cache);
  kv_append_arrays(check, p, out, k_cache, v_cache, qkv, q_scale);
  const int64_t capacity = k_cache.shape[2];
  check.value(p.length <= capacity, "qkv",
              "at most " + std::to_string(capacity) + " positions, which the caches hold",
              p.length);
  check.value(position >= 0 && position <= capacity - p.length, "position",
              "0 to " + std::to_string(capacity - p.length) + ", so that " +
                  std::to_string(p.length) + " more fit into " + std::to_string(capacity),
              position);
  if (qkv.numel() == 0) return;
  p.qkv = qkv.data;
  p.out = out.data;
  std::copy_n(qkv.strides, 4, p.qkv_strides);
  std::copy_n(out.strides, 3, p.out_strides);
  const Out* caches[] = {&k_cache, &v_cache};
  for (int i = 0; i < 2; ++i) {
    std::copy_n(caches[i]->strides, 3, p.cache_strides[i]);
    p.cache[i] = static_cast<char*>(caches[i]->data) +
                 position * caches[i]->strides[2] * dtype_size(p.dtype);
  }
  kernels.run(check, p, qkv);
}

}  // namespace pixleap
