#include "core/parallel.h"
#include "ops/kv_append/token.inl"
#include "ops/kv_append_varlen/kv_append_varlen.h"

namespace pixleap {
namespace {

// Index of the sequence that has `row`.
int64_t sequence_of(const KvAppendVarlenParams& p, int64_t row) {
  int64_t low = 0, high = p.count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (p.sequences[middle].row <= row ? low : high) = middle;
  }
  return low;
}

template <class T>
void append_sequences(const KvAppendVarlenParams& p) {
  const KvAppendParams& one = p.shared;
  parallel_for(one.length, kv_append_grain(one), [&](int64_t first, int64_t last) {
    const TokenWork work(one);
    int64_t i = sequence_of(p, first);
    for (int64_t row = first; row < last; ++row) {
      if (i + 1 < p.count && p.sequences[i + 1].row == row) ++i;
      const KvAppendSequence& s = p.sequences[i];
      append_token(one, static_cast<const T*>(one.qkv) + row * one.qkv_strides[1],
                   static_cast<T*>(one.out) + row * one.out_strides[2], 0, row, s.slot,
                   s.position + row - s.row, work);
    }
    work.release();
  });
}

}  // namespace

void PIXLEAP_KERNEL(kv_append_varlen)(const KvAppendVarlenParams& p) {
  with_float_type(p.shared.dtype, [&]<class T>() { append_sequences<T>(p); });
}

}  // namespace pixleap
