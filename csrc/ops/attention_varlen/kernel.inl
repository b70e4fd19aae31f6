#include "ops/attention_varlen/tasks.inl"

namespace pixleap {

void PIXLEAP_KERNEL(attention_varlen)(const AttentionVarlenParams& p) {
  with_attention_types(p.shared, [&]<class T, class KV>() { attend_sequences<T, KV>(p); });
}

}  // namespace pixleap
