// bfloat16 on AMX, with keys and values in bfloat16 or int8. Other types keep the digits that
// tiles of bfloat16 would take.
#include "ops/attention/amx.inl"
#include "ops/attention/tasks.inl"

namespace pixleap {

void attention_amx(const AttentionParams& p) {
  if (p.dtype != DType::bf16) return attention_avx512(p);
  if (p.kv_dtype == DType::i8)
    attend<bf16_t, int8_t, TileScratch>(p);
  else
    attend<bf16_t, bf16_t, TileScratch>(p);
}

}  // namespace pixleap
