#include "core/parallel.h"
#include "ops/kv_append/token.inl"

namespace pixleap {
namespace {

template <class T>
void append(const KvAppendParams& p) {
  parallel_for(p.batch * p.length, kv_append_grain(p), [&](int64_t first, int64_t last) {
    const TokenWork work(p);
    for (int64_t task = first; task < last; ++task) {
      const int64_t b = task / p.length, l = task % p.length;
      append_token(p, static_cast<const T*>(p.qkv) + b * p.qkv_strides[0] + l * p.qkv_strides[1],
                   static_cast<T*>(p.out) + b * p.out_strides[0] + l * p.out_strides[2], b, l, b,
                   p.position + l, work);
    }
    work.release();
  });
}

}  // namespace

void PIXLEAP_KERNEL(kv_append)(const KvAppendParams& p) {
  with_float_type(p.dtype, [&]<class T>() { append<T>(p); });
}

}  // namespace pixleap
