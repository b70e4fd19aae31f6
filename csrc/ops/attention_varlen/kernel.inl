#include "core/parallel.h"
#include "ops/attention/block.inl"
#include "ops/attention_varlen/attention_varlen.h"

namespace pixleap {
namespace {

// A sequence as the only entry of a batch.
template <class T>
AttentionParams alone(const AttentionParams& shared, const AttentionSequence& s) {
  AttentionParams p = shared;
  p.q = static_cast<const T*>(p.q) + s.row * p.q_strides[2];
  p.out = static_cast<T*>(p.out) + s.row * p.out_strides[2];
  p.k = static_cast<const T*>(p.k) + s.slot * p.k_strides[0];
  p.v = static_cast<const T*>(p.v) + s.slot * p.v_strides[0];
  p.queries = s.queries, p.keys = s.keys;
  return p;
}

template <class T>
void attend_sequences(const AttentionVarlenParams& p) {
  const int64_t rows = attention_query_block(p.shared.dim);
  parallel_for(p.chunk_count, 1, [&](int64_t first, int64_t last) {
    Scratch scratch;
    AttentionParams one;
    int64_t of = -1;
    for (int64_t i = p.chunks[first]; i < p.chunks[last]; ++i) {
      const AttentionTask& task = p.tasks[i];
      if (task.sequence != of) {
        of = task.sequence;
        one = alone<T>(p.shared, p.sequences[of]);
      }
      const int64_t left = one.queries - task.first_query;
      attend_block<T>(one, 0, task.head, task.first_query, left < rows ? left : rows, scratch);
    }
  });
}

}  // namespace

void PIXLEAP_KERNEL(attention_varlen)(const AttentionVarlenParams& p) {
  with_float_type(p.shared.dtype, [&]<class T>() { attend_sequences<T>(p); });
}

}  // namespace pixleap
