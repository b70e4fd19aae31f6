// One token, which `kv_append` and `kv_append_varlen` are made of.
#include "ops/kv_append/kv_append.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr float kNormFloor = 1e-12f;  // as torch.nn.functional.normalize

float scale_of_head(const KvAppendParams& p, int64_t head) {
  const int64_t i = head * p.q_scale_stride;
  if (p.q_scale_dtype == DType::f32) return static_cast<const float*>(p.q_scale)[i];
  if (p.q_scale_dtype == DType::bf16) return to_float(static_cast<const bf16_t*>(p.q_scale)[i]);
  return to_float(static_cast<const f16_t*>(p.q_scale)[i]);
}

template <class T>
void copy_row(const T* in, T* out, int64_t dim) {
  std::memcpy(out, in, static_cast<size_t>(dim) * sizeof(T));
}

// out = in * scale / |in|
template <class T>
void normalise_row(const T* in, T* out, int64_t dim, float scale) {
  vf squares{};
  for_each_vector(dim, [&](int64_t d, int64_t lanes) {
    const vf x = load_upto(in + d, lanes);
    squares = fma(x, x, squares);
  });
  const float norm = __builtin_sqrtf(reduce_add(squares));
  const vf factor = splat(scale / (norm < kNormFloor ? kNormFloor : norm));
  for_each_vector(dim, [&](int64_t d, int64_t lanes) {
    store_upto(out + d, load_upto(in + d, lanes) * factor, lanes);
  });
}

// in: (3, heads, dim); q, and keys and values in `cache`: (heads, dim).
template <class T>
void append_token(const KvAppendParams& p, const T* in, T* q, T* const (&cache)[2]) {
  for (int64_t h = 0; h < p.heads; ++h) {
    const T* head = in + h * p.qkv_strides[3];
    T* k = cache[0] + h * p.cache_strides[0][1];
    if (p.q_scale) {
      normalise_row(head, q + h * p.out_strides[1], p.dim, scale_of_head(p, h));
      normalise_row(head + p.qkv_strides[2], k, p.dim, 1.f);
    } else {
      copy_row(head, q + h * p.out_strides[1], p.dim);
      copy_row(head + p.qkv_strides[2], k, p.dim);
    }
    copy_row(head + 2 * p.qkv_strides[2], cache[1] + h * p.cache_strides[1][1], p.dim);
  }
}

}  // namespace
}  // namespace pixleap
