#include "ops/attention/tasks.inl"

namespace pixleap {

void PIXLEAP_KERNEL(attention)(const AttentionParams& p) {
  with_attention_types(p, [&]<class T, class KV>() { attend<T, KV>(p); });
}

}  // namespace pixleap
