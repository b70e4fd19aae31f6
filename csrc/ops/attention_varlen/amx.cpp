// As attention/amx.cpp.
#include "ops/attention/amx.inl"
#include "ops/attention_varlen/tasks.inl"

namespace pixleap {

void attention_varlen_amx(const AttentionVarlenParams& p) {
  if (p.shared.dtype != DType::bf16) return attention_varlen_avx512(p);
  if (p.shared.kv_dtype == DType::i8)
    attend_sequences<bf16_t, int8_t, TileScratch>(p);
  else
    attend_sequences<bf16_t, bf16_t, TileScratch>(p);
}

}  // namespace pixleap
