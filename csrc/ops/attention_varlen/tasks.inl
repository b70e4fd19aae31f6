// A call of `attention_varlen` as the front's tasks.
#include "core/parallel.h"
#include "ops/attention/block.inl"
#include "ops/attention_varlen/attention_varlen.h"

namespace pixleap {
namespace {

// A sequence as the only entry of a batch.
template <class T, class KV>
AttentionParams alone(const AttentionParams& shared, const AttentionSequence& s) {
  AttentionParams p = shared;
  p.q = static_cast<const T*>(p.q) + s.row * p.q_strides[2];
  p.out = static_cast<T*>(p.out) + s.row * p.out_strides[2];
  p.k = static_cast<const KV*>(p.k) + s.slot * p.k_strides[0];
  p.v = static_cast<const KV*>(p.v) + s.slot * p.v_strides[0];
  if constexpr (sizeof(KV) == 1) {
    p.k_scale += s.slot * p.k_scale_strides[0];
    p.v_scale += s.slot * p.v_scale_strides[0];
  }
  p.queries = s.queries, p.keys = s.keys;
  return p;
}

template <class T, class KV, class S = Scratch>
void attend_sequences(const AttentionVarlenParams& p) {
  parallel_for(p.chunk_count, 1, [&](int64_t first, int64_t last) {
    S scratch;
    AttentionParams one;
    int64_t of = -1;
    for (int64_t i = p.chunks[first]; i < p.chunks[last]; ++i) {
      const AttentionTask& task = p.tasks[i];
      if (task.sequence != of) {
        of = task.sequence;
        one = alone<T, KV>(p.shared, p.sequences[of]);
      }
      attend_block<T, KV>(one, {0, task.head, 0, task.first_query, task.queries}, scratch);
    }
  });
}

}  // namespace
}  // namespace pixleap
