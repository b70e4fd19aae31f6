#include "core/parallel.h"
#include "ops/attention/block.inl"

namespace pixleap {
namespace {

template <class T, class KV>
void attend(const AttentionParams& p) {
  const bool windowed = p.window.rows > 0;
  const int64_t windows = windowed ? p.window.count() : 1;
  const int64_t queries = windowed ? p.window.size() : p.queries;
  const int64_t keys = windowed ? queries : p.keys;
  const int64_t rows =
      attention_task_queries(p.dim, queries, p.batch * p.heads * windows, num_threads());
  const int64_t blocks = (queries + rows - 1) / rows;
  const int64_t work = (queries < rows ? queries : rows) * keys * p.dim;
  parallel_for(
      p.batch * p.heads * windows * blocks, kAttentionGrain / (work + 1) + 1,
      [&](int64_t begin, int64_t end) {
        Scratch scratch;
        for (int64_t task = begin; task < end; ++task) {
          const int64_t first = task % blocks * rows, part = task / blocks;
          const int64_t head = part / windows, left = queries - first;
          attend_block<T, KV>(
              p, {head / p.heads, head % p.heads, part % windows, first, left < rows ? left : rows},
              scratch);
        }
      });
}

}  // namespace

void PIXLEAP_KERNEL(attention)(const AttentionParams& p) {
  with_attention_types(p, [&]<class T, class KV>() { attend<T, KV>(p); });
}

}  // namespace pixleap
