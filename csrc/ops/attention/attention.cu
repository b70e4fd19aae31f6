#include "ops/attention/cuda_mma.h"
#include "ops/attention/cuda_simt.h"

namespace pixleap {
namespace {

template <class T, int D, bool Split>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_mma(const __grid_constant__ AttentionParams p, const int64_t first) {
  attend_mma<T, D, Split>(
      p, attention_work(p, first + blockIdx.x, MmaAttention<T, D, Split>::kQueries));
}

template <int D>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_simt(const __grid_constant__ AttentionParams p, const int64_t first) {
  attend_simt<D>(p, attention_work(p, first + blockIdx.x, SimtAttention<D>::kQueries));
}

template <int D>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_stream(const __grid_constant__ AttentionParams p, const int64_t first) {
  attend_stream<D>(p, attention_work(p, first + blockIdx.x, 1));
}

}  // namespace

// Which kernel runs depends on one head's queries and on types only, and so do the bits.
void attention_cuda(const AttentionParams& p, const Device& device) {
  const int64_t queries = p.window.rows ? p.window.size() : p.queries;
  if (attention_by_mma(p))
    return with_mma_attention(p, queries, [&]<class T, int D, bool Split>() {
      using Shape = MmaAttention<T, D, Split>;
      launch_attention(attention_mma<T, D, Split>, p, Shape::kQueries, Shape::kBytes, device);
    });
  with_padded_dim(p.dim, [&]<int D>() {
    if (queries <= kAttentionStreamUpTo && !p.window.near_rows)
      return launch_attention(attention_stream<D>, p, 1, 0, device);
    using Shape = SimtAttention<D>;
    launch_attention(attention_simt<D>, p, Shape::kQueries, Shape::kBytes, device);
  });
}

}  // namespace pixleap
