// A call of `attention` as tasks: blocks of queries of one head.
#include "core/parallel.h"
#include "ops/attention/block.inl"

namespace pixleap {
namespace {

// S: scratch of a task, which says which attend_block is meant.
template <class T, class KV, class S = Scratch>
void attend(const AttentionParams& p) {
  const bool windowed = p.window.rows > 0;
  const int64_t windows = windowed ? p.window.count() : 1;
  const int64_t queries = windowed ? p.window.size() : p.queries;
  const int64_t keys = windowed ? p.window.keys(0).size() : p.keys;
  const int64_t rows =
      attention_task_queries(p.dim, queries, p.batch * p.heads * windows, num_threads());
  const int64_t blocks = (queries + rows - 1) / rows;
  const int64_t work = (queries < rows ? queries : rows) * keys * p.dim;
  parallel_for(p.batch * p.heads * windows * blocks, kAttentionGrain / (work + 1) + 1,
               [&](int64_t begin, int64_t end) {
                 S scratch;
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t first = task % blocks * rows, part = task / blocks;
                   const int64_t head = part / windows, window = part % windows;
                   const int64_t all = windowed ? p.window.queries(window).size() : queries;
                   const int64_t n = all - first < rows ? all - first : rows;
                   if (n > 0)
                     attend_block<T, KV>(p, {head / p.heads, head % p.heads, window, first, n},
                                         scratch);
                 }
               });
}

}  // namespace
}  // namespace pixleap
