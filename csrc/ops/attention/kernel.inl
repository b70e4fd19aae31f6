#include "core/parallel.h"
#include "ops/attention/block.inl"

namespace pixleap {
namespace {

template <class T>
void attend(const AttentionParams& p) {
  const int64_t rows = attention_query_block(p.dim), blocks = (p.queries + rows - 1) / rows;
  const int64_t work = (p.queries < rows ? p.queries : rows) * p.keys * p.dim;
  parallel_for(p.batch * p.heads * blocks, kAttentionGrain / (work + 1) + 1,
               [&](int64_t first, int64_t last) {
                 Scratch scratch;
                 for (int64_t task = first; task < last; ++task) {
                   const int64_t head = task / blocks, i = task % blocks * rows;
                   const int64_t n = p.queries - i < rows ? p.queries - i : rows;
                   attend_block<T>(p, head / p.heads, head % p.heads, i, n, scratch);
                 }
               });
}

}  // namespace

void PIXLEAP_KERNEL(attention)(const AttentionParams& p) {
  with_float_type(p.dtype, [&]<class T>() { attend<T>(p); });
}

}  // namespace pixleap
